"""Quantize: near the float model but not it, named apart from it, and without a trace on it."""

from __future__ import annotations

import copy
import importlib.util
import logging

import pytest
import torch
from helpers_subjects import Unchanged, logits, lora, make_subject
from transformers import GPT2Config, GPT2LMHeadModel

from unlearnkit.errors import ModelError, RecipeError, UserError
from unlearnkit.evaluation.attacks.quantize import Quantize, is_quantized, quantized
from unlearnkit.evaluation.probes import score_answers
from unlearnkit.evaluation.questions import likelihood_questions
from unlearnkit.models.load import model_fingerprint, to_device

pytest.importorskip("bitsandbytes", reason="pip install 'unlearnkit[quantization]'")
KINDS = ["int8", "nf4", "fp4"]
#: Linear layers of the tiny model: q, k, v, o, gate, up and down in each of two layers.
LAYERS = 14


@pytest.fixture
def subject(tiny_model, tiny_tokenizer, fictional_rows):
    return make_subject(tiny_model(), tiny_tokenizer, fictional_rows)


def relative(model, other):
    one, two = logits(model), logits(other)
    return ((one - two).norm() / two.norm()).item()


def test_each_rounding_is_near_the_model_and_none_is_the_model(subject):
    model, errors = subject.model, {}
    unchanged, before = Unchanged(model), logits(model)
    with Quantize(bits=["int8", "nf4", "fp4", "nf4"]).stages(subject) as stages:
        for stage in stages:
            assert stage.model is not model
            assert is_quantized(stage.model)
            assert not stage.model.training
            assert stage.seen == frozenset()
            errors[stage.variant] = relative(stage.model, model)
            assert stage.level == {"int8": 8, "nf4": 4, "fp4": 4}[stage.variant]
            assert (stage.facts["layers"], stage.facts["layers_left"]) == (LAYERS, 0)
            unchanged.check()
    unchanged.check()
    assert torch.equal(before, logits(model))
    assert list(errors) == KINDS
    assert 1e-4 < errors["int8"] < 0.02 < errors["nf4"] < errors["fp4"] < 0.2


def test_an_exception_in_the_body_leaves_the_model(subject):
    unchanged = Unchanged(subject.model.requires_grad_(False))

    def body():
        with Quantize().stages(subject) as stages:
            kept.append(stages)
            stage = next(stages)
            for p in stage.model.parameters():  # what is not rounded is shared: flags and gradients are not
                if p.is_floating_point():
                    p.requires_grad_(True).grad = torch.ones_like(p)
            stage.model.train()
            raise KeyError("mine")

    kept = []
    with pytest.raises(KeyError, match="mine"):
        body()
    unchanged.check()
    assert next(kept[0], None) is None


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_are_blocks_of_64_each_with_its_scale(subject, kind):
    """Blocks follow one another in memory, over the ends of rows (of 32 and 96 here). A weight becomes the
    nearest of 16 values times its block's largest magnitude; the layer multiplies by that."""
    from bitsandbytes.functional import get_4bit_type

    model, levels = quantized(subject.model, kind)[0], get_4bit_type(kind, device="cpu")
    for name in ("model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj"):
        weight = subject.model.get_submodule(name).weight.detach()
        blocks = weight.reshape(-1, 64)
        scale = blocks.abs().amax(1, keepdim=True)
        nearest = (levels[((blocks / scale)[..., None] - levels).abs().argmin(-1)] * scale).reshape(
            weight.shape
        )
        with torch.no_grad():
            used = model.get_submodule(name)(torch.eye(weight.shape[1])).T
        different = (used - nearest).abs() > 1e-6
        assert different.float().mean() < (0.001 if kind == "nf4" else 0.05)  # a few lie on a border
        worst = (levels.sort().values.diff().max() / 2 * scale).expand(blocks.shape).reshape(weight.shape)
        assert ((used - weight).abs() <= worst * 1.01).all()


def test_eight_bits_are_127_steps_to_the_largest_magnitude_of_a_row(subject):
    name = "model.layers.1.mlp.down_proj"
    layer = quantized(subject.model, "int8")[0].get_submodule(name)
    weight = subject.model.get_submodule(name).weight.detach()
    scale = weight.abs().amax(1, keepdim=True) / 127
    assert ((layer.weight.data - weight / scale).abs() < 0.6).all()  # it is rounded from float16
    with torch.no_grad():
        used = layer(torch.eye(weight.shape[1])).T
    assert ((used - weight).abs() < 0.62 * scale).all()
    assert not torch.equal(used, weight)


def test_embeddings_norms_and_the_output_stay(subject):
    model, facts = quantized(subject.model, "nf4")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    kept = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    own = dict(subject.model.named_parameters())
    assert all(p.data_ptr() == own[name].data_ptr() for name, p in kept.items())
    linear = sum(p.numel() for name, p in own.items() if name not in kept)
    assert facts["weights_share"] == pytest.approx(linear / sum(p.numel() for p in own.values()), abs=1e-4)
    assert set(own) == {name for name, _ in model.named_parameters()}


def test_every_rounding_has_a_fingerprint_of_its_own_which_asking_does_not_change(subject):
    """Results are kept by fingerprint: one for two models would give the float model's answers."""
    names = {"float": model_fingerprint(subject.model)}
    for kind in KINDS:
        model = quantized(subject.model, kind)[0]
        names[kind] = model_fingerprint(model)
        logits(model)
        assert to_device(model) is model
        assert model_fingerprint(model) == names[kind]
        assert model_fingerprint(quantized(subject.model, kind)[0]) == names[kind]
    names["int8, 0"] = model_fingerprint(quantized(subject.model, "int8", int8_threshold=0.0)[0])
    with torch.no_grad():
        subject.model.get_submodule("model.layers.0.mlp.up_proj").weight[0, 0] += 1
    names["other weights"] = model_fingerprint(quantized(subject.model, "nf4")[0])
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_generation_and_scores_for_any_batch_size(subject, kind):
    model = quantized(subject.model, kind)[0]
    ids = torch.tensor([[5, 6, 7]])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    assert made.shape[1] > 3
    for end in range(3, made.shape[1]):
        assert model(made[:, :end]).logits[0, -1].argmax() == made[0, end]
    asked = likelihood_questions("forget", subject.rows["forget"], subject.tokenizer, subject.template)
    results = []
    for batch_tokens in (10_000, 1):
        probe = score_answers(model, asked, pad_id=0, batch_tokens=batch_tokens, done=lambda _: None)
        results.append({name: result["logps"] for batch in probe for name, result in batch})
    for name, logps in results[0].items():
        assert logps == pytest.approx(results[1][name], abs=1e-5)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_an_adapter_is_merged_first(tiny_model, tiny_tokenizer, fictional_rows, kind):
    model = lora(tiny_model(), lora_alpha=32, modules_to_save=["norm"])
    subject, unchanged, before = (
        make_subject(model, tiny_tokenizer, fictional_rows),
        Unchanged(model),
        logits(model),
    )
    with Quantize(bits=[kind]).stages(subject) as stages:
        stage = next(stages)
        merged = copy.deepcopy(model).merge_and_unload()
        assert torch.equal(logits(stage.model), logits(quantized(merged, kind)[0]))
        assert stage.facts["layers"] == LAYERS
        assert model_fingerprint(stage.model) != model_fingerprint(quantized(tiny_model(), kind)[0])
    unchanged.check()
    assert torch.equal(before, logits(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(subject, dtype):
    subject.model.to(dtype)
    for kind in KINDS:
        model, facts = quantized(subject.model, kind)
        assert facts["layers"] == LAYERS
        assert logits(model).dtype == dtype
        assert 0 < relative(model, subject.model) < 0.3


def test_transposed_layers_and_biases(tiny_tokenizer):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=64, n_embd=32, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=1
            )
        ).eval()
        for name, p in model.named_parameters():
            torch.nn.init.normal_(p, std=0.3 if "bias" in name else 0.1)
    unchanged = Unchanged(model)
    for kind, most in (("int8", 0.02), ("nf4", 0.2)):
        rounded, facts = quantized(model, kind)
        assert facts["layers"] == 8
        assert 0 < relative(rounded, model) < most
    unchanged.check()


def test_a_trainer_s_wrapper_does_not_lead_back_to_the_float_model(subject):
    from accelerate.utils.operations import convert_outputs_to_fp32

    plain = logits(quantized(subject.model, "nf4")[0])
    model = subject.model
    model.forward = convert_outputs_to_fp32(torch.autocast("cpu", dtype=torch.bfloat16)(model.forward))
    wrapped = model.forward
    assert torch.equal(logits(quantized(model, "nf4")[0]), plain)
    assert model.forward is wrapped


def test_layers_that_are_refused_are_counted(subject, monkeypatch):
    import bitsandbytes

    init = bitsandbytes.nn.Params4bit.__new__

    def picky(cls, data=None, *args, **kwargs):
        if data is not None and data.shape[0] != data.shape[1]:
            raise RuntimeError("only square ones\nand more")
        return init(cls, data, *args, **kwargs)

    monkeypatch.setattr(bitsandbytes.nn.Params4bit, "__new__", picky)
    model, facts = quantized(subject.model, "nf4")
    assert (facts["layers"], facts["layers_left"]) == (8, 6)
    refused = "(model.layers.0.mlp.gate_proj: only square ones)"
    assert facts["note"] == f"6 of 14 linear layers could not be rounded {refused}"
    assert 0 < relative(model, subject.model) < 0.3


def test_no_layer_at_all(subject, monkeypatch):
    from unlearnkit.evaluation.attacks import quantize

    def refuse(*_):
        raise ValueError("no")

    monkeypatch.setattr(quantize, "_layer", refuse)
    with pytest.raises(
        ModelError, match=r"bitsandbytes refuses them \(model.layers.0.self_attn.q_proj: no\)"
    ):
        quantized(subject.model, "nf4")

    def full(*_):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(quantize, "_layer", full)
    with pytest.raises(torch.OutOfMemoryError):
        quantized(subject.model, "nf4")


def test_a_quantised_model_is_refused(subject):
    with Quantize(bits=["nf4"]).stages(subject) as stages:
        again = next(stages)
        with pytest.raises(ModelError, match="quantised already"), Quantize().stages(again):
            pass
    assert not is_quantized(subject.model)


def test_a_missing_package_is_named_before_anything_else(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name)
    )
    with pytest.raises(UserError, match=r"pip install 'unlearnkit\[quantization\]'"):
        Quantize().check()
    with pytest.raises(UserError, match="bitsandbytes"), Quantize().stages(None):
        pass


def test_bad_options():
    for bits in ([], ["int4"]):
        with pytest.raises(RecipeError, match="use int8, nf4, fp4"):
            Quantize(bits=bits).check()
    with pytest.raises(RecipeError, match="int8_threshold"):
        Quantize(int8_threshold=-1.0).check()


def test_no_line_is_logged_for_every_product(subject, caplog):
    with caplog.at_level(logging.WARNING), Quantize(bits=["int8"]).stages(subject) as stages:
        logits(next(stages).model)
    assert not caplog.records
    assert not logging.getLogger("bitsandbytes.autograd._functions").filters


def test_a_layer_of_whole_blocks_multiplies_in_the_precision_of_the_model():
    """Some CPUs have a kernel that computes in bfloat16, 3 digits instead of 7."""
    from bitsandbytes.functional import dequantize_4bit

    from unlearnkit.evaluation.attacks.quantize import _layer

    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear, x = torch.nn.Linear(128, 8), torch.randn(3, 128)
    layer = _layer(linear, "nf4", 6.0)
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    with torch.no_grad():
        for _ in range(2):  # what that kernel rearranges it rearranges when it is first called
            torch.testing.assert_close(layer(x), x @ weight.T + linear.bias, atol=1e-5, rtol=1e-5)


def test_four_bits_may_be_stored_in_any_dtype():
    from bitsandbytes.nn import Params4bit

    from unlearnkit.evaluation.attacks.quantize import is_quantized_weight

    stored = Params4bit(torch.ones(64, 2), quant_type="nf4", quant_storage=torch.bfloat16).to("cpu")
    assert stored.is_floating_point()
    assert is_quantized_weight(stored)
    assert not is_quantized_weight(torch.nn.Parameter(torch.ones(2)))
