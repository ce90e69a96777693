"""Models of every form: an adapter, its merged model, and 4-bit weights that a user has loaded."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from unlearnkit.evaluation.runner import evaluate
from unlearnkit.models.load import load_model
from unlearnkit.models.tiny import create_model

pytest.importorskip("bitsandbytes", reason="pip install 'unlearnkit[quantization]'")


@pytest.fixture
def saved(tmp_path, tiny_tokenizer):
    """A model whose layers bitsandbytes can pack: all widths are multiples of 64."""
    model = create_model(
        tiny_tokenizer, hidden_size=64, num_layers=2, num_heads=2, intermediate_size=128,
        max_position_embeddings=256,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def data(tmp_path, fictional_rows):
    rows = {"forget": fictional_rows("forget10_perturbed")[:3], "holdout": fictional_rows("holdout10")[:3]}
    for name, some in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return {name: str(tmp_path / f"{name}.jsonl") for name in rows}


def run(model, tokenizer, data, suite="forget"):
    return evaluate(model, tokenizer, suite, data, max_new_tokens=4, progress=False, cache=False)


def same(one, two, tolerance):
    """Equal texts and arg-max hits, near log-probs."""
    a, b = one.run.records, two.run.records
    assert a["text"].equals(b["text"])
    for x, y in zip(a["hits"], b["hits"], strict=True):
        assert list(x) == list(y)
    for x, y in zip(a["logps"], b["logps"], strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance)


def test_an_adapter_is_its_merged_model(saved, tiny_tokenizer, data):
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, lora_alpha=8)
        adapter = get_peft_model(load_model(str(saved)), config).eval()
    with_adapter = run(adapter, tiny_tokenizer, data)
    merged = run(adapter.merge_and_unload(), tiny_tokenizer, data)
    same(with_adapter, merged, 1e-4)
    assert with_adapter.summary["fingerprint"]["model"] != merged.summary["fingerprint"]["model"]


def test_packed_weights_give_the_same_numbers_twice(saved, tiny_tokenizer, data):
    """bitsandbytes may rearrange 4-bit weights in a forward pass on a CPU: no name or number may move."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    model = AutoModelForCausalLM.from_pretrained(saved, quantization_config=config, device_map="cpu").eval()
    assert any("4bit" in type(module).__name__ for module in model.modules())
    first = run(model, tiny_tokenizer, data, "membership")
    second = run(model, tiny_tokenizer, data, "membership")
    same(first, second, 1e-6)
    assert first.run.records["value"].equals(second.run.records["value"]), "gradient norms"
    assert first.summary["fingerprint"] == second.summary["fingerprint"]
    whole = run(load_model(str(saved)), tiny_tokenizer, data, "membership")
    name = "membership_loss"
    ours, theirs = (one.metrics[name].per_example for one in (first, whole))
    assert np.corrcoef(ours, theirs)[0, 1] > 0.9, "rounded, not broken"
