"""Every method's loss, gradient and logged metrics in the real training loop, against plain loops over full
logits.

The loops were written from the published formulas alone; nothing of the library's own losses is used here.
Each row is read by itself, unpadded, and a global batch at once, where the trainer pads or packs, splits it
into micro-batches and keeps reference values. Answers are of unequal length, some are cut, and padding is
EOS. First the policy is the reference (unless it has an adapter, which already is something else); then it is
moved at random.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers_training import data_sets, difference, logs, lora, make_trainer
from transformers import TrainerCallback

#: Norms, kept reference values and logs are float32.
REL = 1e-5


class Tape(TrainerCallback):
    """(gradient, model) of each optimizer step, after which the weights are moved."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **others):
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        self.steps.append((gradients, copy.deepcopy(model)))

    def on_step_end(self, args, state, control, model=None, **others):
        generator = torch.Generator().manual_seed(state.global_step)
        with torch.no_grad():
            for p in model.parameters():
                p += p.requires_grad * 0.05 * torch.randn(p.shape, generator=generator).to(p)


class Seen:
    """What a model says about the rows of a global batch."""

    def __init__(self, model, batches):
        self.model, self.batches = model, batches

    def rows(self, part):
        """(tokens, labels) without padding."""
        for b in (batch[part] for batch in self.batches):
            for ids, mask, labels in zip(b["input_ids"], b["attention_mask"], b["labels"], strict=True):
                yield ids[: mask.sum()], labels[: mask.sum()].tolist()

    def answers(self, part):
        """Per sequence, per answer token y: (the logits z that predict it, y)."""
        out = []
        for ids, labels in self.rows(part):
            z = self.model(input_ids=ids[None]).logits[0].double()
            out.append([(z[t - 1], y) for t, y in enumerate(labels) if t > 0 and y != -100])
        return out

    def logps(self, part):
        """Per sequence: log pi of each answer token."""
        return [[z[y] - z.logsumexp(0) for z, y in answer] for answer in self.answers(part)]

    def states(self, part, layer):
        """Output of a decoder layer at every answer token itself."""
        out, found = [], []
        inner = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        handle = inner.model.layers[layer].register_forward_hook(lambda *a: out.append(a[-1]))
        for ids, labels in self.rows(part):
            self.model(input_ids=ids[None])
            h = out.pop()[0].double()
            found += [h[t] for t, y in enumerate(labels) if y != -100]
        handle.remove()
        return found


def mean(values):
    return sum(values) / len(values)


def flat(answers):
    return [token for answer in answers for token in answer]


def without(z, y, by):
    """softmax of the logits z in which the label y lost `by`."""
    lower = z.detach().clone()
    lower[y] -= by
    return lower.softmax(0)


def cross_entropy(q, z):
    return -(q * z.log_softmax(0)).sum()


def kl(z, other):
    p = z.softmax(0)
    return cross_entropy(p, other) - cross_entropy(p, z)


def preference(policy, reference, s):
    """DPO, IdkDPO, AltPO and RPO."""
    logps = [policy.logps(part) for part in s["parts"]]
    chosen, rejected = ([sum(answer) for answer in side] for side in logps)
    ref_chosen, ref_rejected = ([sum(x) for x in reference.logps(part)] for part in s["parts"])
    w = [s["beta"] * (a - b) for a, b in zip(chosen, ref_chosen, strict=True)]
    v = [s["beta"] * (a - b) for a, b in zip(rejected, ref_rejected, strict=True)]
    loss = -s.get("scale", 1) * mean([torch.sigmoid(a - b).log() for a, b in zip(w, v, strict=True)])
    metrics = {
        "rewards/chosen": mean(w), "rewards/rejected": mean(v), "rewards/margins": mean(w) - mean(v),
        "rewards/accuracies": mean([float(a > b) for a, b in zip(w, v, strict=True)]),
        "logps/chosen": mean(chosen), "logps/rejected": mean(rejected),
        f"{s['parts'][0].split('.')[0]}/dpo": loss,
    }  # fmt: skip
    if "eta" in s:
        sft, weight = {
            "sum_beta": (-mean(chosen), s["beta"] * s["eta"]),
            "seq_mean": (-mean([sum(answer) / len(answer) for answer in logps[0]]), s["eta"]),
            "token_mean": (-mean(flat(logps[0])), s["eta"]),
        }[s["sft_reduction"]]
        loss, metrics[f"{s['parts'][0]}/sft"] = loss + weight * sft, sft
    return loss, metrics


def npo(policy, reference, s):
    both = zip(policy.logps("forget"), reference.logps("forget"), strict=True)
    ratios = [sum(p) - sum(r) for p, r in both]
    loss = -2 / s["beta"] * mean([torch.sigmoid(-s["beta"] * d).log() for d in ratios])
    weight = mean([2 * torch.sigmoid(s["beta"] * d) for d in ratios])
    return loss, {"forget/npo": loss, "forget/log_ratio": mean(ratios), "forget/weight": weight}


def simnpo(policy, reference, s):
    nlls = [-sum(answer) / len(answer) for answer in policy.logps("forget")]
    loss = -2 / s["beta"] * mean([torch.sigmoid(s["beta"] * (x - s["margin"])).log() for x in nlls])
    weight = mean([2 * torch.sigmoid(-s["beta"] * (x - s["margin"])) for x in nlls])
    return loss, {"forget/simnpo": loss, "forget/weight": weight, "forget/nll": mean(nlls)}


def weighted(policy, reference, s):
    """Gradient ascent, WGA and SatImp: - mean of sg(p^a (1 - p)^b) CE."""
    logps = flat(policy.logps("forget"))
    p = [x.detach().exp() for x in logps]
    weights = [x ** s.get("beta", s.get("beta1", 0)) * (1 - x) ** s.get("beta2", 0) for x in p]
    loss = mean([w * x for w, x in zip(weights, logps, strict=True)])
    metrics = {"forget/weight": mean(weights)} if "beta" in s or "beta1" in s else {}
    return loss, {**metrics, "forget/nll": -mean(logps)}


def rmu(policy, reference, s):
    states, u = policy.states("forget", s["layer"]), s["trainer"].steering.vector_D.double()
    assert float(u.norm()) == pytest.approx(1, rel=1e-6)
    assert (u >= 0).all()
    loss = mean([(h - s["steering"] * u).square().mean() for h in states])
    cosine = mean([(h @ u) / h.norm() for h in states])
    norm = mean([h.norm() for h in states])
    return loss, {"forget/rmu": loss, "forget/activation_norm": norm, "forget/cosine": cosine}


def undial(policy, reference, s):
    targets = [without(z, y, s["beta"]) for z, y in flat(reference.answers("forget"))]
    both = zip(targets, flat(policy.answers("forget")), strict=True)
    loss = mean([cross_entropy(q, z) for q, (z, _) in both])
    floor = mean([-(q * q.log()).sum() for q in targets])
    return loss, {"forget/undial": loss, "forget/target_kl": loss - floor}


def ce_u(policy, reference, s):
    later = [token for answer in policy.answers("forget") for token in answer[1:]]
    loss = mean([cross_entropy(without(z, y, math.inf), z) for z, y in later])
    push = -mean([torch.log(1 - z.softmax(0)[y]) for z, y in later])
    return loss, {"forget/ce_u": loss, "forget/unlikelihood": push, "forget/entropy": loss - push}


def pdu(policy, reference, s):
    margins = [z.max() - z.mean() for z, _ in flat(policy.answers("forget"))]
    loss = mean([m**2 for m in margins])
    return loss, {"forget/pdu": loss, "forget/margin": mean(margins)}


def retained(policy, reference, s):
    """The retain term."""
    if s["retain"] == "nll":
        return -mean(flat(policy.logps("retain")))
    if s["retain"] == "hidden":
        both = zip(*(x.states("retain", s["layer"]) for x in (policy, reference)), strict=True)
        return mean([(h - r).square().mean() for h, r in both])
    both = zip(flat(policy.answers("retain")), flat(reference.answers("retain")), strict=True)
    return mean([kl(r, z) if s["retain"] == "kl" else kl(z, r) for (z, _), (r, _) in both])


PAIRS = ("pairs.chosen", "pairs.rejected")
CASES = [
    # method, formula, what it needs to know beside the settings, settings
    ("dpo", preference, {"parts": PAIRS}, {"beta": 0.3, "reference": "cached"}),
    ("idk_dpo", preference, {"parts": ("forget.refusal", "forget"), "scale": 2 / 0.2},
     {"beta": 0.2, "forget_weight": 0.5, "retain": "kl"}),
    ("alt_po", preference, {"parts": ("forget.alternate", "forget"), "scale": 2 / 0.05},
     {"beta": 0.05, "retain": "nll", "retain_weight": 2.0, "reference": "adapter_off"}),
    *(("rpo", preference, {"parts": PAIRS},
       {"beta": 0.2, "eta": 0.6, "sft_reduction": name, "reference": "frozen"})
      for name in ("sum_beta", "seq_mean", "token_mean")),
    ("npo", npo, {}, {"beta": 0.1, "retain": "nll", "reference": "cached"}),
    ("grad_diff", weighted, {}, {"retain": "reverse_kl", "reference": "adapter_off"}),
    ("simnpo", simnpo, {}, {"beta": 2.5, "margin": 4.0, "forget_weight": 0.7, "retain": "nll"}),
    ("rmu", rmu, {"retain_weight": 9.0}, {"layer": 0, "steering": 6.5, "steering_scale": "absolute",
                                          "alpha": 9.0, "retain": "hidden"}),
    ("undial", undial, {}, {"beta": 3.0, "retain": "none", "reference": "adapter_off"}),
    ("ce_u", ce_u, {}, {"retain": "none"}),
    ("wga", weighted, {}, {"beta": 0.5, "retain": "kl"}),
    ("sat_imp", weighted, {}, {"beta1": 0.3, "beta2": 1.5, "retain": "nll"}),
    ("pdu", pdu, {}, {"retain": "nll", "retain_weight": 9.0, "epsilon": 0.3}),
]  # fmt: skip


@pytest.mark.parametrize(("method", "formula", "more", "settings"), CASES, ids=[case[0] for case in CASES])
def test_the_formula(method, formula, more, settings, tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    s = {"retain": "none", "forget_weight": 1, "retain_weight": 1, "reference": "auto", **settings, **more}
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    model = tiny_model().to(torch.float32 if s["reference"] == "cached" else torch.float64)
    first, tape, batches = copy.deepcopy(model).requires_grad_(False), Tape(), []
    s["trainer"] = trainer = make_trainer(
        method, model, tokenizer, data_sets(fictional_rows), tmp_path, callbacks=[tape], optim="sgd",
        learning_rate=0.0, max_grad_norm=0.0, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        max_steps=2, max_length=60, truncate=True,
        peft_config=lora(init_lora_weights=False) if s["reference"] == "adapter_off" else None, **settings,
    )  # fmt: skip
    collator = trainer.data_collator
    trainer.data_collator = lambda items: batches.append(collator(items)) or batches[-1]
    trainer.train()
    for i, ((gradients, model), log) in enumerate(zip(tape.steps, logs(trainer), strict=True)):
        policy, reference = (Seen(one, batches[2 * i : 2 * i + 2]) for one in (model, first))
        forget, metrics = formula(policy, reference, s)
        loss = s["forget_weight"] * forget
        if s["retain"] != "none":
            metrics[f"retain/{s['retain']}"] = kept = retained(policy, reference, s)
            loss = loss + s["retain_weight"] * (kept - s.get("epsilon", 0))
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        expected = torch.autograd.grad(loss, list(trained.values()), materialize_grads=True)
        expected = {n: g for n, g in zip(trained, expected, strict=True) if n in gradients or g.any()}
        assert difference(gradients, expected) <= REL
        if i == 0:
            metrics.pop("rewards/accuracies", None)  # of equals; rounding may decide
        for name, value in {**metrics, "loss": loss}.items():
            near_zero = 1e-4 if name.startswith("rewards/") or name == "forget/log_ratio" else 1e-9
            found = pytest.approx(float(torch.as_tensor(value).detach()), rel=REL, abs=near_zero)
            assert log[name] == found, name
