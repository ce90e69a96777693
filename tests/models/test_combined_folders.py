"""Folders of networks served as one: what is in them, and that they open where they should."""

from __future__ import annotations

import copy
import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from helpers_families import FAMILIES, PAD, build, left, pair, prompts, trained
from safetensors.torch import load_file
from torch import nn

from unlearnkit.errors import ModelError
from unlearnkit.models.assistant import build_assistant
from unlearnkit.models.combined.folders import weights_digest
from unlearnkit.models.combined.modeling_combined import CombinedForCausalLM, ULDForCausalLM
from unlearnkit.models.load import load_model, model_fingerprint

every_family = pytest.mark.parametrize("family", FAMILIES)
BATCH = left(prompts())
CODE = {
    "caches.py",
    "combination.py",
    "configuration_combined.py",
    "folders.py",
    "layers.py",
    "memory.py",
    "modeling_combined.py",
}
JSON = {"config.json", "generation_config.json"}


@torch.no_grad()
def answers(model):
    """Logits, and what greedy search and beams make of them."""
    settings = {**BATCH, "max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD}
    return [model(**BATCH).logits, model.generate(**settings), model.generate(**settings, num_beams=3)]


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def offset():
    """Three networks, one of them smaller."""
    networks = {"base": build(num_hidden_layers=3), "tuned": build(seed=1), "untuned": build(seed=2)}
    weights = {"base": 1.0, "tuned": 0.5, "untuned": -0.5}
    return CombinedForCausalLM.of(networks, weights, kind="offset")


@pytest.fixture
def light(tmp_path):
    """A pair, its target's folder, and its own light folder."""
    model = pair(tied=True)
    model.networks["target"].save_pretrained(tmp_path / "target")
    model.save_light(tmp_path / "pair", {"target": {"path": str(tmp_path / "target")}})
    return model, tmp_path / "target", tmp_path / "pair"


# ---- Everything in one folder ------------------------------------------------------------------------------

#: Opens the folders it is given where neither this package nor peft can be imported, and keeps their answers.
ELSEWHERE = """
import importlib.util, sys

class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *rest):
        return None if name.split(".")[0] in ("unlearnkit", "peft") else self.finder.find_spec(name, *rest)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
assert importlib.util.find_spec("unlearnkit") is None and importlib.util.find_spec("peft") is None
import torch
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
batch, settings, full, kept, light = torch.load("asked.pt")
for folder in full:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        kept[folder] = [model(**batch).logits, *(model.generate(**batch, **some) for some in settings)]
    kept[folder + " is"] = (type(model).__name__, dict(model.config.weights), model.training)
torch.save(kept, "answered.pt")
assert "unlearnkit" not in sys.modules and "peft" not in sys.modules
try:
    AutoModelForCausalLM.from_pretrained(light, trust_remote_code=True)
except ModuleNotFoundError as error:
    print(error)
"""


def test_the_full_form_opens_without_this_package_and_without_peft(light, tmp_path):
    models = {"llama": light[0], "gemma": pair("Gemma3", tied=True), "gpt": pair("GPT-2"), "offset": offset()}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    greedy = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD}
    torch.save((BATCH, [greedy, {**greedy, "num_beams": 3}], list(models), {}, "pair"), tmp_path / "asked.pt")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "answered.pt")
    for name, model in models.items():
        assert same(found[name], answers(model)), name
        kind = "CombinedForCausalLM" if name == "offset" else "ULDForCausalLM"
        assert found[f"{name} is"] == (kind, model.config.weights, False)
    assert done.stdout.strip() == "No module named 'peft'"


@every_family
def test_written_opened_and_written_again(family, tmp_path):
    model = pair(family, tied=family in ("Llama", "Gemma2", "GPT-2"), alpha=0.3, top_logit_filter=0.2)
    model.save_pretrained(tmp_path / "first")
    opened = load_model(str(tmp_path / "first"))
    assert isinstance(opened, ULDForCausalLM)
    assert (opened.alpha, opened.config.top_logit_filter, opened.training) == (0.3, 0.2, False)
    assert same(answers(opened), answers(model))
    assert model_fingerprint(opened) == model_fingerprint(model)
    opened.save_pretrained(tmp_path / "second")
    for name in ("target/model.safetensors", "assistant.safetensors"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    first, second = (json.loads((tmp_path / n / "config.json").read_text()) for n in ("first", "second"))
    assert first == second
    assert same(answers(load_model(str(tmp_path / "second"))), answers(model))


def test_what_the_full_form_holds(tmp_path):
    model = pair(tied=True)
    model.save_pretrained(tmp_path)
    own = {"target/config.json", "target/generation_config.json", "target/model.safetensors"}
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert files == CODE | JSON | own | {"assistant.safetensors"}
    # Of the assistant what the adapter changed: the linear layers of 2 blocks, and neither head nor norms.
    linear = ("q_proj", "k_proj", "v_proj", "o_proj")
    names = {f"model.layers.{i}.self_attn.{name}.weight" for i in (0, 1) for name in linear}
    names |= {f"model.layers.{i}.mlp.{name}_proj.weight" for i in (0, 1) for name in ("gate", "up", "down")}
    assert set(load_file(tmp_path / "assistant.safetensors")) == names
    # The target is an ordinary model, unchanged by the assistant that stands on its memory.
    plain, target = load_model(str(tmp_path / "target")), build(tied=True)
    assert same(answers(plain), answers(target))
    opened = load_model(str(tmp_path))
    assert same(answers(opened.networks["target"]), answers(target))


def test_common_memory_stays_common():
    """In another precision too, and every weight is still the one of its name."""
    model = pair(tied=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for some in (model, model.bfloat16(), model.float()):
        target, assistant = some.networks["target"], some.networks["assistant"]
        for part in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
            assert target.get_parameter(part).data_ptr() == assistant.get_parameter(part).data_ptr()
        changed = "model.layers.0.mlp.up_proj.weight"
        assert target.get_parameter(changed).data_ptr() != assistant.get_parameter(changed).data_ptr()
        assert target.lm_head.weight is target.model.embed_tokens.weight
        for name, tensor in some.state_dict().items():
            torch.testing.assert_close(tensor.float(), before[name], atol=0, rtol=0.004)


def test_the_target_in_memory_stays_as_it_is():
    target = build(tied=True)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    assistant = trained(build_assistant(target, 2))
    state = {name: tensor.clone() for name, tensor in assistant.state_dict().items()}
    ULDForCausalLM.pair(target, assistant)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())
    assert all(torch.equal(tensor, state[name]) for name, tensor in assistant.state_dict().items())
    assert all(parameter.requires_grad for parameter in target.parameters())


# ---- Names and adapters ------------------------------------------------------------------------------------


def test_what_the_light_form_holds(light):
    model, target, folder = light
    files = {str(p.relative_to(folder)): p.stat().st_size for p in folder.rglob("*") if p.is_file()}
    adapter = {
        f"assistant/{name}" for name in ("adapter_config.json", "adapter_model.safetensors", "README.md")
    }
    assert set(files) == CODE | JSON | adapter
    numbers = sum(p.numel() for name, p in model.adapters["assistant"].named_parameters() if "lora_" in name)
    assert 0 <= files["assistant/adapter_model.safetensors"] - 4 * numbers < 8192  # names and shapes
    source = json.loads((folder / "config.json").read_text())["sources"]
    assert source == {
        "target": {"path": str(target), "digest": weights_digest(build(tied=True))},
        "assistant": {"of": "target", "layers": 2, "adapter": "assistant"},
    }


def test_the_light_form_opens_and_becomes_the_full_one(light, tmp_path):
    model, _, folder = light
    opened = load_model(str(folder.rename(tmp_path / "moved")))
    assert isinstance(opened, ULDForCausalLM)
    torch.testing.assert_close(answers(opened)[0], answers(model)[0], rtol=0, atol=1e-6)
    assert model_fingerprint(opened) == model_fingerprint(model)
    opened.save_pretrained(tmp_path / "full")
    assert same(answers(load_model(str(tmp_path / "full"))), answers(opened))
    opened.save_light(tmp_path / "light", {"target": {"path": "elsewhere", "revision": None}})
    written = json.loads((tmp_path / "light" / "config.json").read_text())["sources"]["target"]
    assert written == {**opened.config.sources["target"], "path": "elsewhere"}


def test_all_that_decides_an_answer_is_in_the_fingerprint():
    model = pair()
    names = [model_fingerprint(model)]
    model.alpha = 0.5
    names.append(model_fingerprint(model))
    model.config.top_logit_filter = 0.2
    names.append(model_fingerprint(model))
    model.networks["assistant"].config.rms_norm_eps = 0.1
    names.append(model_fingerprint(model))
    assert len(set(names)) == 4


def test_another_target_is_refused(light, tmp_path):
    _, target, folder = light
    other = build(tied=True)
    with torch.no_grad():
        other.model.norm.weight *= 1.02
    other.save_pretrained(target)
    with pytest.raises(
        ModelError,
        match=r"is not the target model that this folder was made for \(its weights have the digest "
        r"[0-9a-f]{16}, expected [0-9a-f]{16}\); name .* in config\.json under sources\.target\.path",
    ):
        load_model(str(folder))
    build(tied=True).save_pretrained(tmp_path / "right")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace(str(target), str(tmp_path / "right")))
    load_model(str(folder))


def test_a_target_that_is_gone(light, tmp_path):
    _, target, folder = light
    target.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=str(target)):
        load_model(str(folder))


def test_the_adapter_inside_is_no_model(light):
    folder = light[2]
    with pytest.raises(
        ModelError, match=r"assistant is only a part of the combined model around it; name .*pair$"
    ):
        load_model(str(folder / "assistant"))


def test_in_half_precision(light, caplog):
    model, target, folder = light
    exact = answers(model)[0].softmax(-1)
    opened = load_model(str(folder), dtype="bfloat16")
    assert {p.dtype for p in opened.parameters()} == {torch.bfloat16}
    assert (answers(opened)[0].softmax(-1) - exact).abs().mean() < 0.02
    # Saved as bfloat16 and read as float32: the same numbers, so the same name.
    build(tied=True).bfloat16().save_pretrained(target)
    assert load_model(str(folder), dtype="float32").dtype == torch.float32
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        load_model(str(folder), dtype="float16")
    assert "in a precision in which its weights cannot be compared" in caplog.text


def test_what_cannot_be_light(tmp_path):
    target = build()
    plain = ULDForCausalLM.pair(target, build_assistant(target, 2, lora=None))
    for model, paths, role in (
        (plain, {"target": {"path": "x"}}, "assistant"),
        (pair(), {}, "target"),
        (offset(), {"base": {"path": "x"}, "tuned": {"path": "y"}}, "untuned"),
    ):
        with pytest.raises(
            ValueError, match=rf"the network '{role}' is neither named by a path nor an adapter"
        ):
            model.save_light(tmp_path / "light", paths)
        assert not (tmp_path / "light").exists()


def test_the_name_of_weights():
    class Large(nn.Module):  # 500 million numbers in the memory of one
        def __init__(self, value):
            super().__init__()
            self.register_buffer("weight", torch.full((1,), value).expand(128256 * 4096))

    assert weights_digest(Large(1.0)) == weights_digest(Large(1.0)) != weights_digest(Large(2.0))
    model = build()
    name = weights_digest(model)
    assert len(name) == 16
    adapted = trained(build_assistant(model, 4))
    assert weights_digest(adapted) == name
    assert weights_digest(build_assistant(model, 3)) != name


def test_a_copy_keeps_the_common_memory_and_touches_nothing():
    model = pair("Llama")
    twin = copy.deepcopy(model)
    for one in (model, twin):
        target, assistant = (dict(net.named_parameters()) for net in one.networks.values())
        head = next(name for name in assistant if "embed" in name)
        assert target[head].data_ptr() == assistant[head].data_ptr()
    with torch.no_grad():
        before = model(torch.tensor([[3, 4, 5]])).logits
        for parameter in twin.parameters():
            parameter.zero_()
        torch.testing.assert_close(model(torch.tensor([[3, 4, 5]])).logits, before, rtol=0, atol=0)
