"""Distillation: the loss by hand, its limit, what lies in memory once, and what stays as it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_training import data_sets, make_trainer
from torch import Tensor, nn

from unlearnkit.errors import ModelError, RecipeError
from unlearnkit.models.assistant import build_assistant
from unlearnkit.models.combined.modeling_combined import ULDForCausalLM
from unlearnkit.models.load import load_model
from unlearnkit.training.distill import DistillConfig, closeness, open_pair, target_of

METHOD = "unlearnkit.training.distill"
ALPHA, RATE = 0.7, 0.1
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any, tiny_tokenizer: Any) -> Path:
    """A saved model that is sure of something: as it is made, all tokens are nearly alike."""
    folder = tmp_path_factory.mktemp("target")
    model = tiny_model()
    model.lm_head.weight.data.mul_(20)
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, target: Path, tiny_tokenizer: Any) -> Path:
    """The light form of a pair whose assistant says something else than its target."""
    model = load_model(str(target))
    assistant = build_assistant(model, 1)
    torch.manual_seed(0)
    for name, parameter in assistant.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.5)
    folder = tmp_path_factory.mktemp("pair")
    made = ULDForCausalLM.pair(model, assistant, alpha=ALPHA, top_logit_filter=RATE)
    made.save_light(folder, {"target": {"path": str(target)}})
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory, target: Path, tiny_tokenizer: Any) -> Path:
    """The full form of a pair whose assistant is uniform everywhere, so that the pair is its target."""
    model = load_model(str(target))
    assistant = build_assistant(model, 1, lora=None)
    assistant.model.norm.weight = nn.Parameter(torch.zeros_like(assistant.model.norm.weight), False)
    folder = tmp_path_factory.mktemp("idle")
    ULDForCausalLM.pair(model, assistant, alpha=ALPHA, top_logit_filter=RATE).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make(pair: Path, target: Path, tiny_tokenizer: Any, fictional_rows: Any, tmp_path: Path) -> Make:
    """`make(pair=..., **settings)`: a trainer on the small streams."""

    def build(*, pair: Path = pair, model: Any = None, lora: bool = True, **settings: Any) -> Any:
        from peft import LoraConfig

        streams = data_sets(fictional_rows)
        own = {"forget_streams": ["forget"], "retain_streams": ["retain"]}
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        return make_trainer(
            METHOD, load_model(str(target)) if model is None else model, tiny_tokenizer,
            {name: streams[name] for name in ("forget", "retain")}, tmp_path / "out",
            peft_config=config if lora else None, **{"pair": str(pair), **own, **settings},
        )  # fmt: skip

    return build


def first_loss(trainer: Any) -> Tensor:
    """The loss of the first global batch, with a graph."""
    batch = next(iter(trainer.get_train_dataloader()))
    counts = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    loss: Tensor = trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts)
    return loss


# ---- The loss ------------------------------------------------------------------------------------------


def test_a_pair_that_is_its_target_teaches_nothing(make: Make, idle: Path) -> None:
    """log V from a uniform assistant is added to every token alike, filtered or not: p = p_target, so that
    KL(p || pi) = 0 for an adapter that does nothing yet, and its gradient, pi - p at every logit, too."""
    trainer = make(pair=idle)
    loss = first_loss(trainer)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    grads = [p.grad for p in trainer.model.parameters() if p.requires_grad and p.grad is not None]
    assert grads
    assert max(float(grad.abs().max()) for grad in grads) < 1e-6


def by_hand(target: Tensor, assistant: Tensor, policy: Tensor, filtered: str) -> float:
    """KL(pair || policy) at one position in float64, token by token."""
    s, a, pi = (torch.log_softmax(z.double(), -1).tolist() for z in (target, assistant, policy))
    size = len(s)
    floor = min(max(s) + math.log(RATE), sorted(s, reverse=True)[int(RATE * size) - 1])
    scores = []
    for v in range(size):
        if s[v] >= floor:
            scores.append(s[v] - ALPHA * a[v])
        else:
            scores.append(s[v] + ALPHA * math.log(size) if filtered == "neutral" else -math.inf)
    top = max(scores)
    log_z = top + math.log(sum(math.exp(score - top) for score in scores))
    logp = [score - log_z for score in scores]
    return sum(math.exp(p) * (p - q) for p, q in zip(logp, pi, strict=True) if p > -math.inf)


@pytest.mark.parametrize("filtered", ["neutral", "removed"])
def test_the_loss_by_hand(make: Make, filtered: str) -> None:
    """Token means of both streams, weights 2 and 3; the adapter is not the target any more."""
    trainer = make(filtered=filtered, forget_weight=2.0, retain_weight=3.0)
    torch.manual_seed(1)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    counts = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts)
        expected = 0.0
        for weight, stream in ((2.0, "forget"), (3.0, "retain")):
            values = []
            for ids, labels, mask in zip(
                *(batch[stream][k] for k in ("input_ids", "labels", "attention_mask")), strict=True
            ):
                row = ids[: int(mask.sum())][None]
                networks = [*trainer.pair.networks.values(), trainer.model]
                target, assistant, policy = (net(row).logits[0] for net in networks)
                for t in range(1, row.shape[1]):
                    if labels[t] != -100:
                        values.append(by_hand(target[t - 1], assistant[t - 1], policy[t - 1], filtered))
            expected += weight * sum(values) / len(values)
    assert float(loss) == pytest.approx(expected, rel=2e-4)
    assert expected > 0.01


# ---- Memory --------------------------------------------------------------------------------------------


def test_the_target_lies_in_memory_once(make: Make) -> None:
    """The policy's own tensors are the adapter's; the pair adds what its assistant changed."""
    trainer = make()
    theirs = {p.data_ptr() for p in trainer.pair.networks["target"].parameters()}
    own = {n: p for n, p in trainer.model.named_parameters() if p.data_ptr() not in theirs}
    assert own
    assert all("lora_" in name for name in own)
    assert len(list(trainer.model.parameters())) > len(own)
    assert not {id(p) for p in trainer.model.parameters()} & {id(p) for p in trainer.pair.parameters()}


def test_only_the_adapter_changes(make: Make, target: Path, pair: Path, tmp_path: Path) -> None:
    """After training and saving, the pair's networks are those of the files to the bit, and so is what lies
    under the adapter."""
    trainer = make(num_train_epochs=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    fresh = load_model(str(pair))
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, trainer.pair.state_dict()[name]), name
    under = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): tensor
        for name, tensor in trainer.model.state_dict().items()
        if "lora_" not in name
    }
    for name, tensor in load_model(str(target)).state_dict().items():
        assert torch.equal(tensor, under[name]), name
    # The adapter is put on the target by its own folder alone.
    again = load_model(str(tmp_path / "saved"))
    ids = torch.arange(3, 12)[None]
    trainer.model.eval()
    assert torch.allclose(again(ids).logits, trainer.model(ids).logits, atol=1e-6)
    assert again.peft_config["default"].base_model_name_or_path == str(target)


# ---- How close it comes --------------------------------------------------------------------------------


def test_it_comes_closer(make: Make) -> None:
    """KL falls on both streams in the log, and over all rows; nothing of that depends on batch or padding."""
    trainer = make(num_train_epochs=12, learning_rate=2e-2)
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "forget/kl" in entry]
    for stream in ("forget", "retain"):
        assert log[-1][f"{stream}/kl"] < 0.75 * log[0][f"{stream}/kl"]
    trainer.model.eval()
    rows = trainer.tokenized["forget"].rows
    found = closeness(trainer.model, trainer.pair, rows, pad_id=0)
    assert found["tokens"] == sum(sum(label != -100 for label in row["labels"]) for row in rows)
    assert found["kl"] < 0.75 * found["kl_before"]
    assert found["same"] > found["same_before"]
    assert found == pytest.approx(
        closeness(trainer.model, trainer.pair, rows, pad_id=5, batch_tokens=1), rel=1e-4
    )


def test_closeness_of_the_pair_itself(idle: Path, make: Make) -> None:
    trainer = make(pair=idle)
    trainer.model.eval()
    found = closeness(trainer.model, trainer.pair, trainer.tokenized["retain"].rows, pad_id=0)
    assert found["kl"] == pytest.approx(0, abs=1e-6)
    assert found["kl_before"] == pytest.approx(0, abs=1e-6)
    assert found["same"] == found["same_before"] == 1


# ---- How the pair is served ----------------------------------------------------------------------------


def test_alpha_and_filter(pair: Path) -> None:
    """Both change what is distilled and nothing on the disk; 0 is no filter."""
    own, other = open_pair(str(pair)), open_pair(str(pair), alpha=0.25, top_logit_filter=0)
    assert (own.alpha, own.config.top_logit_filter) == (ALPHA, RATE)
    assert (other.alpha, other.config.top_logit_filter) == (0.25, None)
    assert open_pair(str(pair)).alpha == ALPHA
    assert not any(p.requires_grad for p in own.parameters())


def test_what_is_put_on_the_copy_leaves_the_pair(pair: Path) -> None:
    own = open_pair(str(pair))
    ids = torch.arange(3, 9)[None]
    before = own(ids).logits
    copied = target_of(own)
    copied.lm_head.weight = nn.Parameter(copied.lm_head.weight * 2)
    copied.model.layers[0].mlp = nn.Identity()
    assert torch.equal(own(ids).logits, before)


# ---- Mistakes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pair": ""}, "training.pair is missing"),
        ({"filtered": "gone"}, "training.filtered is 'gone'; use neutral or removed"),
        ({"reference": "adapter_off"}, "the pair is the reference here"),
        ({"retain": "nll"}, "does not follow the pair; use kl, or none"),
        ({"forget_streams": [], "retain": "none"}, "nothing is distilled"),
        ({"forget_streams": [], "retain_streams": []}, "nothing is distilled"),
    ],
)
def test_settings_that_mean_nothing(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        DistillConfig(output_dir=str(tmp_path), **{"pair": "somewhere", **settings})


def test_the_retain_set_alone(make: Make) -> None:
    trainer = make(forget_streams=[])
    assert trainer.objective.streams == ("retain",)
    assert float(first_loss(trainer).detach()) > 0


@pytest.mark.parametrize("kind", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_weights_that_are_shared_are_not_split(make: Make, kind: str) -> None:
    trainer = make()
    setattr(trainer, kind, True)
    with pytest.raises(ModelError, match="start without --launch, or with --launch ddp"):
        trainer._live_reference()


def test_models_that_do_not_fit(make: Make, target: Path, tiny_model: Any) -> None:
    with pytest.raises(ModelError, match="is one ordinary model; name the model folder of a run"):
        make(pair=target)
    with pytest.raises(ModelError, match=r"set model\.lora"):
        make(lora=False)
    other = copy.deepcopy(tiny_model())
    other.model.layers[1].mlp.up_proj.weight.data.add_(0.1)
    with pytest.raises(ModelError, match=r"is not the one that .* combines; set model\.path"):
        make(model=other)
