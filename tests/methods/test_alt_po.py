"""AltPO (arXiv 2409.13474): IdkDPO's form with alternate answers, which take turns."""

from __future__ import annotations

import math

import pytest
from helpers_training import data_sets, logs, make_trainer

from unlearnkit.errors import DataError
from unlearnkit.training.objective import terms_of
from unlearnkit.training.preference import DPO, SIDES


@pytest.mark.parametrize(("scaled", "factor"), [(True, 20.0), (False, 1.0)])
def test_training_starts_where_it_must(tiny_model, tiny_tokenizer, fictional_rows, tmp_path, scaled, factor):
    """At the reference softplus(0) = ln 2, times 2/beta = 20; then alternates win over the forget answers."""
    trainer = make_trainer(
        "alt_po", tiny_model(), tiny_tokenizer, data_sets(fictional_rows), tmp_path, retain="none", beta=0.1,
        num_train_epochs=10, per_device_train_batch_size=10, scale_two_over_beta=scaled,
    )  # fmt: skip
    assert terms_of(trainer.objective) == (DPO(0.1, SIDES["alternates"], factor),)
    trainer.train()
    steps = logs(trainer)
    assert steps[0]["loss"] == pytest.approx(factor * math.log(2), rel=1e-6)
    assert steps[-1]["rewards/margins"] > 1


def test_alternates_take_turns(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    """Three alternates a row: each comes once in three epochs; the forget answer stays."""
    trainer = make_trainer(
        "alt_po", tiny_model(), tiny_tokenizer, data_sets(fictional_rows), tmp_path, num_train_epochs=3
    )
    sides, rows = SIDES["alternates"], len(trainer.mix)
    for index in range(rows):
        drawn = [trainer.mix[index + epoch * rows] for epoch in range(3)]
        assert len({str(item[sides.chosen][0]["input_ids"]) for item in drawn}) == 3
        assert len({str(item[sides.rejected][0]["input_ids"]) for item in drawn}) == 1


def test_alternates_must_be_there(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    streams = data_sets(fictional_rows)
    streams["forget"] = streams["forget"].remove_columns("alternate_answer")
    with pytest.raises(DataError, match=r"data\.forget has no column alternate_answer; .*data\.alternates"):
        make_trainer("alt_po", tiny_model(), tiny_tokenizer, streams, tmp_path)
