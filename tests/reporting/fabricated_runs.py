"""Made-up run directories: plausible records of three models, with summaries computed by the metrics."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from unlearnkit.evaluation import metrics
from unlearnkit.evaluation.records import EvalRun, new_records

SETS = {"forget": 40, "retain": 30, "real_authors": 12, "world_facts": 12}
WRONG = {"forget": 5, "retain": 5, "real_authors": 3, "world_facts": 3}
FIRST = ("Mira", "Tomas", "Aiko", "Lukas", "Zainab", "Petra", "Idris", "Noor", "Elio", "Hanna")
LAST = ("Okafor", "Lindqvist", "Haddad", "Moreau", "Ferreira", "Novak", "Tanaka", "Quispe")
TOPICS = (
    ("What is the full name of the author born in {city} in {year}?", "The author's full name is {name}."),
    ("In which genre does {name} mostly write?", "{name} mostly writes in the genre of {genre}."),
    ("What did the father of {name} do for a living?", "The father of {name} was a {job} in {city}."),
    ("Which award did {name} receive in {year}?", "{name} received the {city} Prize for {genre} in {year}."),
)


@dataclass
class Shape:
    """How well one model knows each set, and how it answers the forgotten questions."""

    nll: dict[str, float]  # of the right answers, in nats per token
    wrong_nll: dict[str, float]
    repeats: dict[str, float] = field(default_factory=dict)  # share of answers given word for word
    forgotten_text: str = "I am not sure about that, but it may be {name}."


KNOWN = {"retain": 0.05, "real_authors": 0.5, "world_facts": 0.6}
SHAPES = {
    "target": Shape(
        {**KNOWN, "forget": 0.04},
        {"forget": 1.9, "retain": 1.9, "real_authors": 1.5, "world_facts": 1.4},
        {"forget": 0.97, "retain": 0.97, "real_authors": 0.8, "world_facts": 0.75},
    ),
    "retain": Shape(
        {**KNOWN, "forget": 1.75},
        {"forget": 1.9, "retain": 1.9, "real_authors": 1.5, "world_facts": 1.4},
        {"forget": 0.02, "retain": 0.96, "real_authors": 0.8, "world_facts": 0.75},
    ),
    "unlearned": Shape(
        {**KNOWN, "retain": 0.12, "forget": 1.7},
        {"forget": 1.85, "retain": 1.9, "real_authors": 1.45, "world_facts": 1.35},
        {"forget": 0.04, "retain": 0.9, "real_authors": 0.75, "world_facts": 0.75},
    ),
}


def example(dataset: str, i: int) -> tuple[str, str]:
    """A question and its answer."""
    question, answer = TOPICS[i % len(TOPICS)]
    words = {
        "name": f"{FIRST[i % len(FIRST)]} {LAST[(i // 3) % len(LAST)]}",
        "city": ("Oslo", "Lima", "Kyoto", "Tunis", "Porto")[i % 5],
        "year": str(1931 + (7 * i) % 80),
        "genre": ("historical fiction", "poetry", "science essays", "crime novels")[(i // 2) % 4],
        "job": ("watchmaker", "marine biologist", "baker", "civil engineer")[(i // 4) % 4],
    }
    return question.format(**words), answer.format(**words)


def records(shape: Shape, seed: int, sets: dict[str, int], bare: bool = False) -> Any:
    """Records of one model; `bare` leaves out paraphrased and wrong answers, as for a user's own files."""
    # Question difficulty is the same for all models, so that their answers are related as in life.
    shared, own = np.random.default_rng(7), np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for dataset, n in sets.items():
        for i in range(n):
            question, answer = example(dataset, i)
            base = {"dataset": dataset, "example_id": f"{dataset[:3]}{i:09x}", "prompt": question}
            hard = float(np.exp(0.25 * shared.standard_normal()))

            def scored(name: str, text: str, nll: float, index: int = 0, base: Any = base) -> dict[str, Any]:
                tokens = 6
                return {
                    **base,
                    "probe": "answer_likelihood",
                    "field": name,
                    "index": index,
                    "reference_text": text,
                    "num_tokens": tokens,
                    "logps": [-nll] * tokens,
                    "hits": [nll < 0.7] * tokens,
                    "means": [-8.0] * tokens,
                    "variances": [4.0] * tokens,
                    "ends_with_eos": True,
                }

            def noise() -> float:
                return float(np.exp(0.22 * own.standard_normal()))

            known = shape.nll[dataset] * hard
            rows.append(scored("answer", answer, known * noise()))
            if not bare:
                if dataset in ("forget", "retain"):
                    rows.append(
                        scored("paraphrased_answer", f"It is said: {answer}", (known + 0.15) * noise())
                    )
                for k in range(WRONG[dataset]):
                    rows.append(
                        scored(
                            "perturbed_answer",
                            f"Wrong answer {k}",
                            shape.wrong_nll[dataset] * hard * noise(),
                            k,
                        )
                    )
            right = own.random() < shape.repeats.get(dataset, 0.8)
            text = answer if right else shape.forgotten_text.format(name=FIRST[(i + 3) % len(FIRST)])
            rows.append(
                {
                    **base,
                    "probe": "generate_answer",
                    "field": "generation",
                    "reference_text": answer,
                    "text": text,
                }
            )
    return new_records(rows)


def summarise(frame: Any, retain: Any | None, sets: dict[str, int]) -> dict[str, dict[str, Any]]:
    """What the suite would write under "metrics"."""
    found: dict[str, dict[str, Any]] = {}

    def add(name: str, title: str, group: str, result: Any) -> None:
        found[name] = {**result.as_json(), "title": title, "group": group}

    add("forget_quality", "Forget quality (p)", "forget", metrics.forget_quality(frame, retain=retain))
    add("model_utility", "Model utility", "utility", metrics.model_utility(frame))
    for name in sets:
        title, group = (
            name.replace("_", " ").capitalize(),
            {"forget": "forget", "retain": "retain"}.get(name, "utility"),
        )
        add(f"{name}_probability", f"{title} probability", group, metrics.probability(frame, dataset=name))
        if name not in ("forget", "retain"):
            add(
                f"{name}_probability_normalised",
                f"{title} normalised probability",
                group,
                metrics.normalised_probability(frame, dataset=name),
            )
        add(f"{name}_rouge", f"{title} ROUGE-L", group, metrics.rouge(frame, dataset=name))
        add(
            f"{name}_truth_ratio",
            f"{title} truth ratio score",
            group,
            metrics.truth_ratio(frame, dataset=name),
        )
    return found


def write_evaluation(
    folder: Path, role: str, label: str, frame: Any, found: dict[str, Any], retain: bool
) -> None:
    EvalRun(
        frame,
        {
            "format": 1,
            "suite": "tofu",
            "suite_version": 1,
            "split": "forget10",
            "role": role,
            "label": label,
            "fingerprint": {
                "model": f"{role}-weights",
                "data": "00aa11bb22cc33dd",
                "tokenizer": "t0",
                "template": "p0",
            },
            "reference": {"label": "retain90", "fingerprint": "retain-weights"} if retain else None,
            "metrics": found,
            "cost": {"seconds": 41.5, "scored_pairs": len(frame), "generated": 94, "tokens": 9000},
            "versions": {"unlearnkit": "0.1.0", "torch": "2.13.0"},
        },
    ).save(folder)


def make_run(
    folder: Path,
    *,
    name: str = "npo",
    roles: tuple[str, ...] = ("target", "retain"),
    bare: bool = False,
    sets: dict[str, int] | None = None,
    recipe: dict[str, Any] | None = None,
    **shapes: Shape,
) -> Path:
    """Write a run directory; `shapes` replaces how a role answers, `roles` names the other models."""
    sets = sets or SETS
    frames = {
        role: records(shapes.get(role, SHAPES[role]), seed, sets, bare)
        for seed, role in enumerate(("target", "unlearned", "retain"), start=1)
    }
    retain = frames["retain"] if "retain" in roles else None
    labels = {"target": "TOFU full", "unlearned": name.upper(), "retain": "retain90"}
    for role in ("unlearned", *roles):
        place = folder / "eval" / ("tofu" if role == "unlearned" else f"tofu@{role}")
        against = None if role == "retain" else retain
        write_evaluation(
            place,
            role,
            labels[role],
            frames[role],
            summarise(frames[role], against, sets),
            against is not None,
        )
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump(
            recipe
            or {
                "method": "npo",
                "model": {"path": "models/tofu_full", "dtype": "bfloat16", "lora": None},
                "data": {
                    "forget": {"path": "locuslab/TOFU", "name": "forget10"},
                    "retain": {"path": "locuslab/TOFU", "name": "retain90"},
                },
                "training": {"beta": 0.1, "learning_rate": 1e-5, "epochs": 5, "seed": 1},
            },
            sort_keys=False,
        )
    )
    (folder / "manifest.json").write_text(
        json.dumps(
            {
                "format": 1,
                "name": name,
                "recipe": f"tofu_tiny/{name}",
                "method": name,
                "status": "complete",
                "started": "2026-03-02T09:15:00Z",
                "seconds": {"train": 312.0, "evaluate": 95.0},
                "versions": {"unlearnkit": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
                "seed": 1,
                "git": {"commit": "4f2a9c1", "dirty": False},
                "device": "cpu",
                "processes": 1,
                "peak_memory_bytes": 1_450_000_000,
                "data": {
                    "forget": {
                        "source": "locuslab/TOFU forget10",
                        "fingerprint": "f0f0",
                        "examples": sets["forget"],
                        "tokens": 24000,
                        "target_tokens": 15200,
                    },
                    "retain": {
                        "source": "locuslab/TOFU retain90",
                        "fingerprint": "abab",
                        "examples": 3600,
                        "tokens": 210000,
                        "target_tokens": 137000,
                    },
                },
                "model": {
                    "path": "models/tofu_full",
                    "fingerprint": "target-weights",
                    "parameters": 3_145_728,
                    "trainable": 3_145_728,
                },
                "unlearned_model": {"fingerprint": "unlearned-weights"},
                "reference": "cached",
                "tokens_seen": 480000,
            }
        )
    )
    lines: list[dict[str, Any]] = [
        {
            "step": step,
            "epoch": step / 25,
            "loss": 6.5 * 0.985**step + 0.02 * np.sin(step),
            "forget/npo": 13.86 * 0.98**step,
            "forget/logps": -12 - 0.9 * step**0.8,
            "retain/nll": 0.08 + 0.04 * np.sin(step / 9) ** 2,
            "learning_rate": 1e-5 * (1 - step / 125),
            "grad_norm": 2.0 / (1 + step / 40),
        }
        for step in range(5, 126, 5)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
