"""Hidden states: those of a plain forward pass, to the bit, and nothing above them is computed."""

from __future__ import annotations

import contextlib
import random

import pytest
import torch
from helpers_training import lora
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from unlearnkit.data.collate import StreamCollator
from unlearnkit.data.formats import IGNORE
from unlearnkit.errors import ModelError
from unlearnkit.training import hidden, reference
from unlearnkit.training.hidden import Tap
from unlearnkit.training.objective import (
    LossOutput,
    Needs,
    Step,
    WeightedSum,
    as_counts,
    count_streams,
    fuse,
    tap_of,
)
from unlearnkit.training.retain import CrossEntropy

STREAMS = ("forget", "retain")
DEPTH = 4
SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": DEPTH,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1,
}  # fmt: skip
OTHER_SHAPES = {"gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": DEPTH, "n_head": 4, "n_positions": 64}}
MODEL_TYPES = ("llama", "qwen3", "gemma3_text", "gpt2", "gpt_neox", "phi", "opt")


def _model(model_type="llama", **changes):
    torch.manual_seed(0)
    shape = {**OTHER_SHAPES.get(model_type, SHAPE), **changes}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **shape)).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(0, 0.2)
    return model


def _rows(*lengths):
    ids = [[random.Random(100 * n + i).randrange(3, 64) for i in range(n)] for n in lengths]
    return [
        {"input_ids": row, "labels": [IGNORE] * (1 + len(row) // 3) + row[1 + len(row) // 3 :]} for row in ids
    ]


def _batch(**layout):
    items = [{"forget": _rows(9), "retain": _rows(7, 3)}, {"forget": _rows(14), "retain": _rows(5)}]
    return StreamCollator(STREAMS, pad_id=0, **layout)(items)


def _step(model, batch, tap, **options):
    counts = as_counts(count_streams([batch], STREAMS, "cpu"), STREAMS)
    return Step(model, batch, counts, tap=tap, **options)


def _expected(model, batch, layer):
    """By the book: the layer's entry in `hidden_states`, at the labels."""
    inputs = {k: v for k, v in fuse(batch).items() if k in ("input_ids", "attention_mask", "position_ids")}
    h_BTD = model(**inputs, output_hidden_states=True).hidden_states[layer + 1]
    rows = torch.split(h_BTD, [len(batch[s]["labels"]) for s in STREAMS])
    return {s: h[batch[s]["labels"] != IGNORE] for s, h in zip(STREAMS, rows, strict=True)}


@contextlib.contextmanager
def _calls(model):
    """The layers that were called, and the rows that the head saw."""
    layers, rows = [], []
    handles = [
        layer.register_forward_hook(lambda *_, i=i: layers.append(i))
        for i, layer in enumerate(hidden.layer_list(model).layers)
    ]
    head = model.get_output_embeddings()
    handles.append(head.register_forward_hook(lambda _, args, out: rows.append(len(args[0]))))
    yield layers, rows
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_equal_to_a_plain_pass_and_nothing_above_is_computed(model_type, layer):
    model, batch = _model(model_type), _batch()
    before = hidden.layer_list(model).layers
    step = _step(model, batch, Tap((layer,), truncate=True))
    with _calls(model) as (layers, rows):
        states = {s: step.hidden_states(s, layer) for s in STREAMS}
    assert layers == list(range(layer + 1))
    assert rows == [0]
    assert hidden.layer_list(model).layers is before
    for stream, expected in _expected(model, batch, layer).items():
        assert torch.equal(states[stream], expected)
        assert len(expected) == len(step.targets(stream))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("model_type", MODEL_TYPES[:-1])
@torch.no_grad()
def test_padding_and_packing_do_not_matter(model_type, side):
    model, tap = _model(model_type), Tap((1,), truncate=True)
    assert "packed_lines" in _batch(packed=True)["forget"]
    expected = _expected(model, _batch(), 1)
    for batch in (_batch(side=side, multiple_of=16), _batch(packed=True)):
        step = _step(model, batch, tap)
        for stream in STREAMS:
            torch.testing.assert_close(step.hidden_states(stream, 1), expected[stream], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [None, True, False], ids=["plain", "reentrant", "not reentrant"])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_gradients_are_those_of_a_plain_pass(adapter, checkpointing):
    """In float64; also where activation checkpointing calls the layers a second time."""
    from peft import get_peft_model

    model, batch, layer = _model().double(), _batch(), 1
    if adapter:
        model = get_peft_model(model, lora(init_lora_weights=False)).double()
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]

    def loss(states):
        return states["forget"].sin().sum() - 0.5 * states["retain"].sin().sum()

    expected = torch.autograd.grad(loss(_expected(model, batch, layer)), trained, allow_unused=True)
    if checkpointing is not None:
        model.enable_input_require_grads()
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": checkpointing})
    step = _step(model, batch, Tap((layer,), truncate=True))
    loss({s: step.hidden_states(s, layer) for s in STREAMS}).backward()
    found = [p.grad for p in trained]
    assert [g is None for g in found] == [g is None for g in expected]
    assert any(g is None for g in found)  # above the layer
    for one, other in zip(found, expected, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_one_whole_pass_serves_logits_and_hidden_states():
    model, batch = _model(), _batch(packed=True)
    both = _step(model, batch, Tap((1, 2), truncate=False))
    with _calls(model) as (layers, _):
        states, logits = [both.hidden_states("retain", i) for i in (1, 2)], both.logits("forget")
    assert layers == list(range(DEPTH))
    assert torch.equal(logits, _step(model, batch, None).logits("forget"))
    for i, found in zip((1, 2), states, strict=True):
        alone = _step(model, batch, Tap((i,), truncate=True)).hidden_states("retain", i)
        assert torch.equal(found, alone)


def test_logits_of_a_truncated_pass_are_refused():
    step = _step(_model(), _batch(), Tap((1,), truncate=True))
    with pytest.raises(RuntimeError, match="HIDDEN_STATES"):
        step.token_logps("forget")


class _Reads:
    """A term that reads hidden states."""

    streams, needs = ("forget",), Needs.HIDDEN_STATES

    def __init__(self, *layers):
        self.layers = layers

    def __call__(self, step, batch):
        return LossOutput(step.hidden_states("forget", self.layers[0]).sum())


def test_the_pass_ends_early_if_every_term_allows_it():
    assert tap_of(CrossEntropy()) is None
    assert tap_of(_Reads(3)) == Tap((3,), truncate=True)
    two = WeightedSum(((1.0, _Reads(3, 1)), (1.0, WeightedSum(((1.0, _Reads(2)),)))))
    assert tap_of(two) == Tap((1, 2, 3), truncate=True)
    assert tap_of(WeightedSum(((1.0, two), (1.0, CrossEntropy())))) == Tap((1, 2, 3), truncate=False)


def test_the_layers_are_put_back_after_an_error():
    model = _model()
    before = hidden.layer_list(model).layers
    before[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _step(model, _batch(), Tap((2,), truncate=True)).hidden_states("forget", 2)
    assert hidden.layer_list(model).layers is before
    assert not any(isinstance(module, hidden._Tapped) for module in model.modules())


def test_a_batch_without_rows_has_no_states():
    model = _model()
    empty = StreamCollator(STREAMS, pad_id=0)([{}])
    step = _step(model, empty, Tap((1,), truncate=True))
    assert step.hidden_states("forget", 1).shape == (0, 32)
    assert step.hidden_states("forget", 1).requires_grad
    assert reference.FrozenModel(model).hidden_states(empty["retain"], 1).shape == (0, 32)


class _Wrapped(nn.Module):
    """As DDP and DeepSpeed wrap a model."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, **inputs):
        return self.module(**inputs)


@torch.no_grad()
def test_the_layers_are_found_under_wrappers():
    from peft import get_peft_model

    model = _model()
    expected = _expected(model, _batch(), 1)["forget"]
    adapted = get_peft_model(model, lora())
    wrapped = _Wrapped(adapted)
    assert hidden.layer_list(wrapped).layers is model.model.layers
    assert hidden.layer_list(adapted).path == "base_model.model.model.layers"
    step = _step(wrapped, _batch(), Tap((1,), truncate=True), unwrapped=adapted)
    assert torch.equal(step.hidden_states("forget", 1), expected)


def test_sharded_layers_are_all_shown(monkeypatch):
    """FSDP learns in its first pass which layers there are."""
    model = _model()
    monkeypatch.setattr(hidden, "_is_sharded", lambda layers: True)
    with _calls(model) as (layers, rows):
        states = _step(model, _batch(), Tap((1,), truncate=True)).hidden_states("forget", 1)
    assert layers == list(range(DEPTH))
    assert rows == [0]
    assert torch.equal(states, _expected(model, _batch(), 1)["forget"])


def test_layers_are_sharded_where_anything_in_them_is():
    """FSDP may wrap a layer, or what lies in it; its class is put before the module's own."""
    from torch.distributed.fsdp import FSDPModule

    for place in ("", "mlp.down_proj"):
        layers = _model().model.layers
        assert not hidden._is_sharded(layers)
        inside = layers[2].get_submodule(place)
        inside.__class__ = type("Sharded", (FSDPModule, type(inside)), {})
        assert hidden._is_sharded(layers)


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(ModelError, match=r"layer 7 .* the model's layers are 0 to 3; name one of these$"):
        _step(_model(), _batch(), Tap((1, 7), truncate=True)).hidden_states("forget", 1)


def test_a_model_without_a_list_of_layers_is_refused():
    model = _model()
    model.config.num_hidden_layers = 5
    with pytest.raises(ModelError, match=r"LlamaForCausalLM has no list of 5 decoder layers .*; use a model"):
        hidden.layer_list(model)


# ---- The truncated copy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_truncated_copy_gives_the_same_states(model_type, tied):
    model, batch = _model(model_type, tie_word_embeddings=tied), _batch()["forget"]
    names = [name for name, _ in model.named_parameters()]
    copied = hidden.truncated_copy(model, 2)
    assert [name for name, _ in model.named_parameters()] == names
    assert model.get_output_embeddings().weight.shape == (64, 32)
    assert _configured_layers(copied) == 2
    expected = reference.FrozenModel(model).hidden_states(batch, 1)
    assert torch.equal(reference.FrozenModel(copied).hidden_states(batch, 1), expected)
    layers = sum(p.numel() for layer in hidden.layer_list(model).layers[2:] for p in layer.parameters())
    shared = {id(p) for p in model.get_input_embeddings().parameters()}
    head = sum(p.numel() for p in model.get_output_embeddings().parameters() if id(p) not in shared)
    assert model.num_parameters() - sum(p.numel() for p in copied.parameters()) == layers + head
    assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in model.parameters()}


def _configured_layers(model):
    """The configuration's number of layers, which each list in it agrees with."""
    config = hidden.text_config(model)
    kinds = getattr(config, "layer_types", None)
    assert kinds is None or len(kinds) == config.num_hidden_layers
    assert len(hidden.layer_list(model).layers) == config.num_hidden_layers
    return config.num_hidden_layers


@torch.no_grad()
def test_the_reference_is_the_model_without_its_adapter():
    """adapter_off and the frozen copy: hidden states to the bit, whatever the adapter does."""
    from peft import get_peft_model

    model, batch = _model(), _batch()["retain"]
    frozen = reference.FrozenModel(hidden.truncated_copy(model, 3))
    adapted = get_peft_model(model, lora(init_lora_weights=False))
    expected = frozen.hidden_states(batch, 2)
    assert torch.equal(reference.AdapterOff(adapted, adapted).hidden_states(batch, 2), expected)
    assert not torch.allclose(reference.FrozenModel(adapted).hidden_states(batch, 2), expected)
