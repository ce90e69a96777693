"""Packed rows: the same log-probs and gradients as padded rows, for every model type that is packed."""

from __future__ import annotations

import random

import pytest
import torch
from helpers_training import assert_same_training, data_sets, make_trainer, weights
from transformers import AutoConfig, AutoModelForCausalLM

from unlearnkit.data.collate import StreamCollator
from unlearnkit.data.formats import IGNORE
from unlearnkit.errors import RecipeError
from unlearnkit.training import logprobs, packing
from unlearnkit.training.objective import Step, as_counts, count_streams, fuse

STREAMS = ("forget", "retain")
SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    # A window much shorter than the rows, for those that have one.
    "sliding_window": 4, "use_sliding_window": True, "max_window_layers": 0,
}  # fmt: skip
OTHER_SHAPES = {"gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}}


def _model(model_type, attention="sdpa"):
    """Weights large enough that every token matters to those that see it."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **OTHER_SHAPES.get(model_type, SHAPE))
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(0, 0.3)
    return model


def _rows(*lengths):
    ids = [[random.Random(100 * n + i).randrange(3, 64) for i in range(n)] for n in lengths]
    return [{"input_ids": row, "labels": [IGNORE] * (len(row) // 3) + row[len(row) // 3 :]} for row in ids]


ITEMS = [
    {"forget": [row], "retain": others}
    for row, others in zip(_rows(9, 23, 1, 14), ([], _rows(7, 3), _rows(19), _rows(6, 6)), strict=True)
]


def _collate(packed, **layout):
    return StreamCollator(STREAMS, pad_id=0, packed=packed, **layout)(ITEMS)


def _step(model, batch):
    return Step(model, batch, as_counts(count_streams([batch], STREAMS, "cpu"), STREAMS))


def _logps(model, batch):
    step = _step(model, batch)
    return torch.cat([step.token_logps(s) for s in STREAMS])


def _attentions():
    for model_type in packing.MODEL_TYPES:
        for attention in packing.ATTENTION:
            if not (model_type == "gemma2" and attention == "sdpa"):  # transformers has none
                yield model_type, attention


@pytest.mark.parametrize(("model_type", "attention"), _attentions())
@torch.no_grad()
def test_packed_log_probs_are_the_padded_ones(model_type, attention):
    model = _model(model_type, attention)
    assert packing.packs(model)
    packed, padded = _collate(True), _collate(False)
    expected = _logps(model, padded)
    torch.testing.assert_close(_logps(model, packed), expected, rtol=1e-5, atol=1e-5)
    # The rows are laid out so that a model that lets them see each other is found out.
    inputs = packing.packed_batch(packed)
    seeing = logprobs.target_logits(model, {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])})
    leaked = logprobs.label_logps(seeing.logits_NV, seeing.targets_N)
    assert (leaked - expected).abs().max() > 1e-2


@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "gemma2", "gemma3_text", "olmo3", "cohere2"])
@torch.no_grad()
def test_the_windows_of_the_models_above_are_shorter_than_the_rows(model_type):
    model = _model(model_type, "eager")
    ids = _rows(23)[0]["input_ids"]
    changed = [3 + (ids[0] + 1) % 60, *ids[1:]]
    last = [model(input_ids=torch.tensor([row])).logits[0, -1] for row in (ids, changed)]
    # Two layers that see four tokens each do not reach from the last token to the first; a full layer does.
    layers = set(getattr(model.config, "layer_types", None) or ["sliding_attention"])
    assert "sliding_attention" in layers
    assert torch.equal(*last) == (layers == {"sliding_attention"})


@pytest.mark.parametrize("layout", [{}, {"multiple_of": 8}])
def test_gradients_and_the_order_of_targets_stay(layout):
    gradients = []
    for batch in (_collate(False), _collate(True, **layout)):
        model = _model("llama").double()
        step = _step(model, batch)
        per_row = torch.cat([step.sequence_logps(s) for s in STREAMS])
        (per_row * torch.arange(1.0, len(per_row) + 1)).sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-10, atol=1e-10)


def test_a_packed_batch_holds_every_row_once_and_its_targets_in_order():
    batch = _collate(True)
    inputs, padded = packing.packed_batch(batch), fuse(batch)
    assert 88 <= inputs["input_ids"].numel() <= 4 * 23 < padded["input_ids"].numel() == 9 * 23
    torch.testing.assert_close(logprobs.batch_targets(inputs), logprobs.batch_targets(padded))
    starts = inputs["position_ids"].flatten() == 0
    lines = torch.cat([inputs["input_ids"].flatten(), torch.tensor([0])]).tolist()
    for row in [r for item in ITEMS for s in STREAMS for r in item[s]]:
        ids = row["input_ids"]
        found = [i for i in starts.nonzero()[:, 0].tolist() if lines[i : i + len(ids)] == ids]
        assert found, "a row is missing"
    assert "attention_mask" not in inputs


def test_first_fit_places_rows_side_by_side():
    assert packing.first_fit([2, 5, 3, 1], 5) == ([8, 0, 5, 10], 3)
    draw = random.Random(0)
    for _ in range(50):
        lengths = [draw.randint(1, 20) for _ in range(draw.randint(1, 30))]
        starts, lines = packing.first_fit(lengths, 20)
        taken = [start + i for start, n in zip(starts, lengths, strict=True) for i in range(n)]
        assert len(set(taken)) == len(taken)
        assert max(taken) < lines * 20
        assert all(s // 20 == (s + n - 1) // 20 for s, n in zip(starts, lengths, strict=True))
        assert lines <= 2 * sum(lengths) / 20 + 1


def test_the_line_length_with_the_fewest_tokens_is_taken():
    assert packing.best_lines([7, 7, 5, 5], 7) == ([0, 12, 7, 19], 2, 12)
    assert packing.best_lines([6, 6], 6) == ([0, 6], 2, 6)  # no longer than it must be
    assert packing.best_lines([7, 7, 2], 8, multiple_of=8) == ([0, 7, 14], 1, 16)
    assert _collate(True, multiple_of=8)["forget"]["packed_lines"].shape[2] % 8 == 0


def test_left_padded_rows_are_not_packed():
    assert packing.packed_batch(_collate(True, side="left")) is None


def test_a_batch_without_rows_is_not_packed():
    batch = StreamCollator(STREAMS, pad_id=0, packed=True)([{}])
    assert packing.packed_batch(batch) is None
    step = Step(_model("llama"), batch, as_counts(torch.zeros(2, 5), STREAMS))
    assert step.token_logps("retain").shape == (0,)
    assert step.token_logps("retain").requires_grad


def test_other_models_are_padded():
    assert not packing.packs(_model("llama"), "never")
    assert not packing.packs(object())
    model = _model("llama")
    model.config._attn_implementation = "flash_attention_2"
    assert not packing.packs(model)
    model = _model("llama")
    model.config.model_type = "unheard_of"
    assert not packing.packs(model)


def test_prompt_tuning_is_padded_and_lora_is_packed():
    from peft import LoraConfig, PrefixTuningConfig, get_peft_model

    assert packing.packs(get_peft_model(_model("llama"), LoraConfig(task_type="CAUSAL_LM")))
    prefix = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    assert not packing.packs(get_peft_model(_model("llama"), prefix))


def test_training_does_not_depend_on_packing(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    streams, ends, computed = data_sets(fictional_rows), [], []
    for setting in packing.SETTINGS:
        model = tiny_model()
        trainer = make_trainer(
            "npo", model, tiny_tokenizer, streams, tmp_path / setting, packing=setting, retain="kl",
            optim="sgd", eval_dataset=streams["retain"],
        )  # fmt: skip
        sizes = []
        model.model.layers[0].register_forward_pre_hook(
            lambda _, a, s=sizes: s.append(a[0].shape[:2].numel())
        )
        trainer.train()
        computed.append(sum(sizes))
        ends.append((weights(model), trainer.evaluate()["eval_loss"]))
    assert_same_training(ends[0][0], ends[1][0], weights(tiny_model()))
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-5)
    assert computed[0] < computed[1]


def test_an_unknown_setting_is_refused(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    with pytest.raises(RecipeError, match=r"training\.packing is 'always'"):
        make_trainer(
            "npo", tiny_model(), tiny_tokenizer, data_sets(fictional_rows), tmp_path, packing="always"
        )
