"""Further parts of made-up run directories: attacks, membership tests, samples, a second suite, a "
"trajectory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from fabricated_runs import SHAPES, Shape, records, summarise

from unlearnkit.evaluation import metrics
from unlearnkit.evaluation.records import EvalRun, new_records

FORGET = {"forget": 40}
STAGES: tuple[dict[str, Any], ...] = (
    {"name": "relearn", "variant": "5 steps", "level": 5, "back": 0.25, "control": 0.04},
    {"name": "relearn", "variant": "10 steps", "level": 10, "back": 0.45, "control": 0.12},
    {"name": "quantize", "variant": "nf4", "level": 4, "back": 0.06, "control": 0.02},
    {"name": "rephrase", "variant": "cloze", "level": None, "back": 0.15, "control": 0.03},
    {"name": "rephrase", "variant": "completion", "level": None, "back": 0.08, "control": 0.02},
)
"""`back`, `control`: the share of forget answers that the attacked unlearned and retain model repeat."""
PLACES = {"unlearned": "tofu", "retain": "tofu@retain", "target": "tofu@target"}


def attacked(role: str, repeats: float) -> Shape:
    """How a model answers after an attack that makes it repeat this share of the forget answers."""
    shape = SHAPES[role]
    nll = {**shape.nll, "forget": shape.nll["forget"] * (1 - repeats)}
    return replace(shape, nll=nll, repeats={**shape.repeats, "forget": repeats})


def add_attacks(
    folder: Path,
    stages: tuple[dict[str, Any], ...] = STAGES,
    roles: tuple[str, ...] = ("unlearned", "retain"),
    seen: tuple[str, ...] = ("for000000000", "for000000001"),
    options: dict[str, Any] | None = None,
) -> Path:
    """Write the attacked evaluations of a run; `seen` are disclosed by relearning."""
    for number, stage in enumerate(stages):
        for role in roles:
            repeats = stage["back" if role == "unlearned" else "control"]
            frame = records(attacked(role, repeats), 20 + number, FORGET, bare=True)
            place = folder / "eval" / PLACES[role] / "attacks" / stage["name"]
            write_attacked(
                place / stage["variant"].replace(" ", "-"),
                role,
                frame,
                {
                    "name": stage["name"],
                    "variant": stage["variant"],
                    "level": stage["level"],
                    "options": options or {"seed": 0},
                    "seen": list(seen) if stage["name"] == "relearn" else [],
                    "facts": {"loss": 0.25, "note": "made up"},
                },
            )
    return folder


def write_attacked(folder: Path, role: str, frame: Any, attack: dict[str, Any]) -> None:
    meta = base_meta(role) | {"attack": attack, "metrics": summarise(frame, None, FORGET)}
    meta["fingerprint"] |= {"model": f"{role}-weights, {attack['name']}, {attack['variant']}"}
    save_stage(EvalRun(frame, meta), folder)


def save_stage(run: EvalRun, folder: Path) -> None:
    """Save one stage and list it as one of a finished attack on the model of the evaluation around it."""
    run.save(folder)
    plain = json.loads((folder.parents[2] / "summary.json").read_text())
    path = folder.parent / "stages.json"
    before = json.loads(path.read_text())["stages"] if path.exists() else []
    stages = list(dict.fromkeys([*before, folder.name]))
    path.write_text(json.dumps({"key": "made up", "of": plain["fingerprint"], "stages": stages}))


def base_meta(role: str, suite: str = "tofu") -> dict[str, Any]:
    return {
        "format": 1,
        "suite": suite,
        "suite_version": 1,
        "split": "forget10",
        "role": role,
        "label": role,
        "fingerprint": {"model": f"{role}-weights", "data": "d", "tokenizer": "t", "template": "p"},
        "reference": None,
        "cost": {"seconds": 3.5, "scored_pairs": 40, "generated": 40, "tokens": 900},
        "versions": {"unlearnkit": "0.1.0"},
    }


def evaluations(folder: Path) -> dict[str, tuple[Path, EvalRun]]:
    """The main evaluations of a run by role, read anew."""
    found = {}
    for role, name in PLACES.items():
        place = folder / "eval" / name
        if place.is_dir():
            found[role] = (place, EvalRun.load(place))
    return found


def add_membership(folder: Path, forget_nll: dict[str, float] | None = None) -> Path:
    """A holdout set in every evaluation, with membership attacks against it and indications.

    `forget_nll` sets how well a role knows the holdout: equal to its forget set by default, but for the
    target, which has never seen the one and knows the other.
    """
    found = evaluations(folder)
    for seed, (role, (_, run)) in enumerate(found.items()):
        nll = {"holdout": (forget_nll or {}).get(role, 1.75)}
        shape = replace(SHAPES[role], nll=nll)
        holdout = records(shape, 40 + seed, {"holdout": 40}, bare=True)
        holdout["prompt"] = "Elsewhere: " + holdout["prompt"]
        run.records = pd.concat([run.records, holdout], ignore_index=True)
    retain = found["retain"][1].records if "retain" in found else None
    for role, (place, run) in found.items():
        against = None if role == "retain" else retain
        for name, title, options in (
            ("membership_loss", "Membership: loss attack (AUC)", {"attack": "loss"}),
            ("membership_min_k", "Membership: Min-K attack (AUC)", {"attack": "min_k"}),
            ("membership_reference", "Membership: reference attack (AUC)", {"attack": "reference"}),
        ):
            result = metrics.membership(run.records, dataset="forget", retain=against, **options)  # type: ignore[arg-type]
            run.meta["metrics"][name] = {**result.as_json(), "title": title, "group": "membership"}
        result = metrics.paraphrase_preference(run.records, dataset="forget")
        run.meta["metrics"]["paraphrase_preference"] = {
            **result.as_json(),
            "title": "Paraphrase preferred to wrong answers",
            "group": "indication",
        }
        result = metrics.exact_memorization(run.records, dataset="forget")
        run.meta["metrics"]["forget_exact_memorization"] = {
            **result.as_json(),
            "title": "Exact memorisation",
            "group": "memorization",
        }
        run.save(place)
    return folder


def add_samples(folder: Path, m: int = 4) -> Path:
    """m sampled answers for each forget example of the unlearned model; the last of the first example "
    "leaks."""
    place, run = evaluations(folder)["unlearned"]
    generated = run.records[
        (run.records["probe"] == "generate_answer") & (run.records["dataset"] == "forget")
    ]
    rows = []
    for number, row in enumerate(generated.to_dict("records")):
        for k in range(m):
            leaks = number == 0 and k == m - 1
            rows.append(
                {
                    "probe": "sample_answer",
                    "dataset": "forget",
                    "example_id": row["example_id"],
                    "field": "sample",
                    "index": k,
                    "prompt": row["prompt"],
                    "reference_text": row["reference_text"],
                    "text": row["reference_text"] if leaks else "No idea whatsoever.",
                }
            )
    run.records = pd.concat([run.records, new_records(rows)], ignore_index=True)
    result = metrics.sampled_leakage(run.records, dataset="forget", aggregate="worst")
    run.meta["metrics"]["forget_leakage_worst"] = {
        **result.as_json(),
        "title": f"Worst of {m} sampled answers (ROUGE-L)",
        "group": "leakage",
    }
    run.save(place)
    return folder


def add_capability(folder: Path) -> Path:
    """A second suite: a task of lm-evaluation-harness for the target and the unlearned model."""
    for role, right in (("target", 12), ("unlearned", 11)):
        frame = new_records(
            {
                "probe": "lm_eval",
                "dataset": "mmlu_tiny",
                "example_id": str(i),
                "field": "acc",
                "prompt": f"Question {i}",
                "reference_text": "A",
                "text": "A" if i < right else "B",
                "value": float(i < right),
            }
            for i in range(16)
        )
        entry = {
            "value": right / 16,
            "low": right / 16 - 0.2,
            "high": right / 16 + 0.2,
            "n": 16,
            "unscored": [],
            "variant": "acc",
            "note": "",
            "weaker": False,
            "extra": {},
            "title": "MMLU (tiny)",
            "group": "capability",
        }
        name = "capability" if role == "unlearned" else f"capability@{role}"
        meta = base_meta(role, "capability") | {"metrics": {"mmlu_tiny": entry}}
        EvalRun(frame, meta).save(folder / "eval" / name)
    return folder


def add_trajectory(folder: Path, satisfied: bool | None = True) -> Path:
    """Evaluations every 20 steps, and the checkpoint of step 40 kept by a rule over two of their metrics; the
    last one where no checkpoint satisfied the rule, and nothing said about that where `satisfied` is None."""
    lines = []
    for step in range(0, 121, 20):
        numbers = {"forget_rouge": 0.95 * 0.97**step, "retain_rouge": 0.96 - step / 2000}
        lines.append(
            {
                "step": step,
                "epoch": step / 25,
                "metrics": {
                    name: {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 16}
                    for name, value in numbers.items()
                },
            }
        )
    (folder / "trajectory.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["selection"] = {
        "rule": "lowest forget_rouge with retain_rouge at least 95 % of the target's",
        "step": 120 if satisfied is False else 40,
        "of_steps": 120,
        "metrics": ["forget_rouge", "retain_rouge"],
    }
    if satisfied is not None:
        manifest["selection"]["satisfied"] = satisfied
    path.write_text(json.dumps(manifest))
    return folder


def add_everything(folder: Path) -> Path:
    """All of the parts of this file."""
    for add in (add_attacks, add_membership, add_samples, add_capability, add_trajectory):
        add(folder)
    return folder
