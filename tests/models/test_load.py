"""Loading models: sentences for people, and a fingerprint that names the weights."""

from __future__ import annotations

import contextlib
import copy
import json
import sys
import types

import pytest
import torch
from helpers_training import lora

from unlearnkit.errors import ModelError
from unlearnkit.models.load import is_adapter, load_model, load_tokenizer, model_fingerprint, quiet_peft


@pytest.fixture
def folder(tiny_model, tiny_tokenizer, tmp_path):
    """A saved model with its tokenizer."""
    place = tmp_path / "model"
    tiny_model().save_pretrained(place)
    tiny_tokenizer.save_pretrained(place)
    return place


def _adapted(model, **settings):
    from peft import get_peft_model

    with quiet_peft():
        return get_peft_model(model, lora(**settings))


def test_loads_in_eval_mode_with_the_saved_dtype(folder, tiny_model):
    model = load_model(str(folder))
    assert not model.training
    assert model_fingerprint(model) == model_fingerprint(tiny_model())
    assert load_model(str(folder), dtype="bfloat16").dtype == torch.bfloat16
    tiny_model().bfloat16().save_pretrained(folder)
    assert load_model(str(folder)).dtype == torch.bfloat16
    assert load_model(str(folder), attn_implementation="eager").config._attn_implementation == "eager"


def test_a_missing_path(tmp_path):
    missing = str(tmp_path / "nowhere")
    for load, what in ((load_model, "model"), (load_tokenizer, "tokenizer")):
        with pytest.raises(ModelError, match=rf"nowhere does not exist; check the path to the {what}$"):
            load(missing)
    with pytest.raises(ModelError, match="'nobody/nothing' is neither a folder nor a hub id of a model"):
        load_model("nobody/nothing")


def test_a_folder_without_a_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(
        ModelError, match=r"holds no model \(no config\.json; it holds .*model\.safetensors.*\); name"
    ):
        load_model(str(folder))
    empty = folder / "empty"
    empty.mkdir()
    with pytest.raises(ModelError, match="it holds nothing"):
        load_tokenizer(str(empty))


@pytest.mark.parametrize("harm", ["cut weights", "no weights", "cut config", "no model type"])
def test_a_half_written_folder(folder, harm):
    weights, config = folder / "model.safetensors", folder / "config.json"
    if harm == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif harm == "no weights":
        weights.unlink()
    elif harm == "cut config":
        config.write_text(config.read_text()[:20])
    else:
        config.write_text("{}")
    with pytest.raises(
        ModelError, match=r"cannot be loaded \(.*\); the folder may be half-written: save or download"
    ):
        load_model(str(folder))


def test_missing_tensors_are_not_filled_with_noise(folder):
    """transformers would draw them at random and go on."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensor.*such as model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(str(folder))


def test_an_adapter_is_put_on_its_base(folder, tiny_model, tmp_path):
    base = load_model(str(folder))
    model = _adapted(base, init_lora_weights=False).eval()
    place = tmp_path / "adapter"
    model.save_pretrained(place)
    assert is_adapter(str(place))
    assert not is_adapter(str(folder))
    loaded = load_model(str(place))
    tokens = torch.arange(3, 23).reshape(2, 10)
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, rtol=0, atol=0)
    assert model_fingerprint(loaded) == model_fingerprint(model) != model_fingerprint(tiny_model())

    settings = json.loads((place / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "gone")
    (place / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="gone does not exist"):
        load_model(str(place))
    (place / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"the model in .*adapter cannot be loaded"):
        load_model(str(place))


# ---- The fingerprint ---------------------------------------------------------------------------------------


def _changed_weight(model):
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-6
    return model


CHANGES = {
    "one weight": _changed_weight,
    "dtype": lambda model: model.bfloat16(),
    "rope": lambda model: (
        setattr(model.config, "rope_parameters", {"rope_type": "default", "rope_theta": 1.0}) or model
    ),
    "adapter": lambda model: _adapted(model),
    "swapped layers": lambda model: setattr(model.model, "layers", model.model.layers[::-1]) or model,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_logits_changes_the_fingerprint(tiny_model, change):
    assert model_fingerprint(CHANGES[change](tiny_model())) != model_fingerprint(tiny_model())


def test_what_changes_no_logit_does_not(tiny_model):
    model = copy.deepcopy(tiny_model())
    model.config.use_cache = False
    model.config._name_or_path = "elsewhere"
    model.config.eos_token_id = 7
    model.train()
    assert model_fingerprint(model) == model_fingerprint(tiny_model())
    assert len(model_fingerprint(model)) == 16


def test_an_adapters_scale_is_part_of_it(tiny_model):
    """Equal adapter weights with another alpha are another model."""
    prints = []
    for alpha in (4, 8):
        torch.manual_seed(0)
        prints.append(model_fingerprint(_adapted(tiny_model(), lora_alpha=alpha)))
    assert prints[0] != prints[1]


def test_what_the_adapter_multiplies_by_is_part_of_it(tiny_model):
    """Also where only some modules differ, where it was changed later, and when the adapter is off."""
    model = _adapted(tiny_model(), init_lora_weights=False)
    first = model_fingerprint(model)
    with model.disable_adapter():
        assert model_fingerprint(model) != first
    assert model_fingerprint(model) == first
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    layer.scaling["default"] *= 2
    assert model_fingerprint(model) != first
    torch.manual_seed(0)
    plain = model_fingerprint(_adapted(tiny_model()))
    torch.manual_seed(0)
    assert model_fingerprint(_adapted(tiny_model(), alpha_pattern={"q_proj": 3})) != plain


# ---- Split over processes ---------------------------------------------------------------------------------


def test_weights_that_fsdp_has_split(tiny_model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = fully_shard(tiny_model(), mesh=init_device_mesh("cpu", (1,)))
        assert all(hasattr(p, "full_tensor") for p in model.parameters())
        assert model_fingerprint(model) == model_fingerprint(tiny_model())
    finally:
        torch.distributed.destroy_process_group()


def test_weights_that_zero_3_has_split(tiny_model, monkeypatch):
    """DeepSpeed leaves empty parameters, which are whole only inside `GatheredParameters`."""
    model, kept = tiny_model(), {}
    for number, parameter in enumerate(model.parameters()):
        parameter.ds_id, kept[number] = number, parameter.data
        parameter.data = torch.empty(0)

    @contextlib.contextmanager
    def gathered_parameters(parameters):
        for p in parameters:
            p.data = kept[p.ds_id]
        yield
        for p in parameters:
            p.data = torch.empty(0)

    zero = types.SimpleNamespace(GatheredParameters=gathered_parameters)
    monkeypatch.setitem(sys.modules, "deepspeed.zero", zero)
    monkeypatch.setitem(sys.modules, "deepspeed", types.SimpleNamespace(zero=zero))
    assert model_fingerprint(model) == model_fingerprint(tiny_model())
    assert all(p.numel() == 0 for p in model.parameters())
