"""A model that was just trained says what it says once it is saved and loaded."""

from __future__ import annotations

import json
from types import MethodType

import pandas as pd
import pytest
import torch
from helpers_training import data_sets, make_trainer

from unlearnkit.evaluation.runner import evaluate
from unlearnkit.models.precision import own_precision


@pytest.fixture
def data(tmp_path, fictional_rows):
    """A few rows as the data of an evaluation."""
    (tmp_path / "forget.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in fictional_rows("forget10")[:3])
    )
    return {"forget": str(tmp_path / "forget.jsonl")}


@pytest.mark.parametrize("trainings", [1, 2])
def test_a_model_trained_in_bf16(tiny_model, tiny_tokenizer, fictional_rows, data, tmp_path, trainings):
    streams = data_sets(fictional_rows)
    settings = {"bf16": True, "max_steps": 1, "learning_rate": 0.1}
    trainer = make_trainer("npo", tiny_model(), tiny_tokenizer, streams, tmp_path / "out", **settings)
    for _ in range(trainings):
        trainer.train()
    options = {"suite": "forget", "data": data, "max_new_tokens": 4, "progress": False}
    wrapped = vars(trainer.model)["forward"]
    live = evaluate(trainer.model, tiny_tokenizer, **options)
    assert vars(trainer.model)["forward"] is wrapped, "the model is handed back as it came"
    trainer.save_model(str(tmp_path / "saved"))
    loaded = evaluate(str(tmp_path / "saved"), cache=False, **options)
    assert live.summary["fingerprint"] == loaded.summary["fingerprint"]
    pd.testing.assert_frame_equal(live.run.records, loaded.run.records)


def test_autocast_around_an_evaluation(tiny_model, tiny_tokenizer, data):
    options = {"suite": "forget", "data": data, "max_new_tokens": 4, "progress": False, "cache": False}
    plain = evaluate(tiny_model(), tiny_tokenizer, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        around = evaluate(tiny_model(), tiny_tokenizer, **options)
    pd.testing.assert_frame_equal(plain.run.records, around.run.records)


def test_a_model_in_the_midst_of_its_training(tiny_model):
    """Then autocast may be the only wrapper."""
    model = tiny_model()
    forward = type(model).forward
    model.forward = MethodType(torch.autocast("cpu", dtype=torch.bfloat16)(forward), model)
    with own_precision(model):
        assert model.forward.__func__ is forward
    assert model.forward.__func__ is not forward


def test_a_model_that_is_not_wrapped_is_left_alone(tiny_model):
    model = tiny_model()
    with own_precision(model):
        assert "forward" not in vars(model)
    assert "forward" not in vars(model)
