"""Made-up runs whose unlearned model is a combination of networks, with a sweep over alpha."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fabricated_runs import SETS, SHAPES, Shape, make_run, records, summarise

from unlearnkit.evaluation.records import EvalRun

ALPHAS = (0.25, 0.75, 1.5)
ROLES = {"uld": ("target", "assistant"), "offset": ("base", "tuned", "untuned"), "value": ("base", "value")}


def serving(kind: str = "uld", alpha: float = 0.75, rate: float | None = 0.01, **more: Any) -> dict[str, Any]:
    """The entry that an evaluation of a combination has in its summary."""
    signs = {"uld": (-1,), "offset": (1, -1), "value": (1,)}[kind]
    weights = dict(zip(ROLES[kind], (1.0, *(sign * alpha for sign in signs)), strict=True))
    modes = (None, None) if rate is None else ("neutral", "removed")
    return {
        "kind": kind,
        "alpha": alpha,
        "weights": weights,
        "top_logit_filter": rate,
        "filtered_likelihoods": modes[0],
        "filtered_generation": modes[1],
    } | more


def served_with(alpha: float) -> Shape:
    """How a pair answers: from the target at alpha = 0 to one that never saw the examples at 0.75, and on."""
    part, beyond = min(1.0, alpha / 0.75), max(0.0, alpha - 0.75)
    target, wanted = SHAPES["target"], SHAPES["unlearned"]
    nll = {
        name: (1 - part) * target.nll[name]
        + part * wanted.nll[name]
        + beyond * (1.2 if name == "forget" else 0.5)
        for name in target.nll
    }
    repeats = {
        name: max(0.0, (1 - part) * share + part * wanted.repeats[name] - 0.3 * beyond)
        for name, share in target.repeats.items()
    }
    return dataclasses.replace(wanted, nll=nll, repeats=repeats)


def make_pair(
    folder: Path, *, kind: str = "uld", alpha: float = 0.75, rate: float | None = 0.01,
    alphas: Sequence[float] = ALPHAS, shape: Shape | None = None, **options: Any,
) -> Path:  # fmt: skip
    """A run directory whose unlearned model is a combination; other options are those of `make_run`."""
    shape = shape or served_with(alpha)
    sizes = {"parameters": dict(zip(ROLES[kind], (3_145_728, 1_376_256, 1_376_256), strict=False))}
    make_run(folder, **{"name": kind, "unlearned": shape} | options)
    place = folder / "eval" / "tofu"
    change(place / "summary.json", serving=serving(kind, alpha, rate, **sizes))
    change(place / "summary.json", "fingerprint", model=f"pair at {alpha}")
    change(folder / "manifest.json", "model", parameters=1_376_256, trainable=98_304)
    if alphas:
        add_alphas(folder, alphas, kind=kind, rate=rate)
    return folder


def add_alphas(folder: Path, alphas: Sequence[float], kind: str = "uld", rate: float | None = 0.01) -> None:
    """A sweep beside the run's own alpha, listed as one of the same model."""
    place = folder / "eval" / "tofu"
    meta = json.loads((place / "summary.json").read_text())
    own = meta["serving"]["alpha"]
    retain = folder / "eval" / "tofu@retain"
    against = EvalRun.load(retain).records if retain.is_dir() else None
    for alpha in sorted({*alphas, own} - {own}):
        frame = records(served_with(alpha), 2, SETS)
        found = summarise(frame, against, SETS)
        EvalRun(frame, meta | {"metrics": found, "serving": serving(kind, alpha, rate)}).save(
            place / "alphas" / str(float(alpha))
        )
    listed = {"of": meta["fingerprint"], "alphas": sorted({*map(float, alphas), own})}
    (place / "alphas" / "alphas.json").write_text(json.dumps(listed))


def change(path: Path, section: str = "", **entries: Any) -> None:
    """Set entries of a JSON file, or of one of its sections."""
    value = json.loads(path.read_text())
    (value[section] if section else value).update(entries)
    path.write_text(json.dumps(value))


def make_distilled(folder: Path, pair: Path) -> Path:
    """A run of one model under an adapter that was distilled from a pair; it forgets a little less."""
    shape = served_with(0.7)
    lora = {"method": "distill", "model": {"path": "models/tofu_full", "lora": {"r": 8}}}
    make_run(folder, name=f"{pair.name}-distilled", unlearned=shape, recipe=lora)
    near = {"kl_before": 0.9, "kl": 0.05, "same_before": 0.4, "same": 0.975, "tokens": 600.0}
    kl = {"forget": near, "retain_answered": near | {"kl": 0.01}}
    entry = {"run": str(pair), "name": pair.name, "serving": serving(), "kl": kl}
    change(folder / "manifest.json", method="unlearnkit.training.distill", distilled_from=entry)
    change(folder / "manifest.json", "model", parameters=3_244_032, trainable=98_304)
    return folder
