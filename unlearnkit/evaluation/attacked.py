"""A suite under attack: each stage of each attack is an evaluation of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnkit.errors import RecipeError, UserError
from unlearnkit.evaluation.attacks import Attack, Subject, attack
from unlearnkit.evaluation.results import (
    ATTACKS,
    STAGES,
    Evaluation,
    compute_metrics,
    described,
    save_evaluation,
)
from unlearnkit.evaluation.share import is_main, processes
from unlearnkit.files import fingerprint, read_json, write_json

if TYPE_CHECKING:
    from unlearnkit.evaluation.inquiry import Inquiry


def make_attacks(
    attacks: Sequence[str | Attack] | Mapping[str, Mapping[str, Any]],
) -> dict[str, Attack]:
    """Attacks by name, each checked.

    Raises:
        RecipeError: an unknown attack or option.
    """
    if isinstance(attacks, Mapping):
        return {name: attack(name, options) for name, options in attacks.items()}
    made: dict[str, Attack] = {}
    for one in attacks:
        name = one if isinstance(one, str) else _name_of(one)
        if name in made:
            raise RecipeError(
                f"the attack {name} is given twice, and only one would be kept; evaluate twice, each time "
                "with an --output of its own"
            )
        made[name] = attack(one) if isinstance(one, str) else one
    return made


def _name_of(one: Attack) -> str:
    return type(one).__module__.rpartition(".")[2]


def under_attack(
    inquiry: Inquiry, subject: Subject, attacks: Mapping[str, Attack], plain: Evaluation,
    reference: Evaluation | None, output: Path | None,
) -> list[Evaluation]:  # fmt: skip
    """Every stage of every attack, evaluated; what lies in `output` from the same attack is read instead.

    Args:
        plain: the evaluation without an attack.
        reference: the retain model's evaluation; metrics compare with its own attacked stage where it has
            one, and with the plain one where the attack changes only the model.
    """
    found: list[Evaluation] = []
    for name, one in attacks.items():
        folder = None if output is None else output / ATTACKS / name
        # Options may name files, whose content decides as well.
        files = {option: _content(value) for option, value in _options(one).items()}
        key = fingerprint(
            plain.summary["fingerprint"], inquiry.name, fingerprint(subject.rows), name, _options(one), files
        )
        stages = _known(folder, key, inquiry)
        if stages is not None:
            stages = [_with_metrics(inquiry, stage, reference) for stage in stages]
            if folder is not None and is_main():
                for stage in stages:
                    stage.run.save(folder / slug(stage.summary["attack"]["variant"]))
        else:
            if folder is not None and is_main():  # an unfinished attack is no attack
                (folder / STAGES).unlink(missing_ok=True)
            stages = list(_stages(inquiry, subject, name, one, reference, folder))
        if folder is not None and is_main():
            list_stages(folder, stages, plain.summary["fingerprint"], key)
        found += stages
    return found


def list_stages(folder: Path, stages: Sequence[Evaluation], of: Any, key: str = "") -> None:
    """Write what makes the stages in a folder count: whose they are, and which."""
    variants = [slug(stage.summary["attack"]["variant"]) for stage in stages]
    write_json(folder / STAGES, {"key": key, "of": of, "stages": variants})


def _stages(
    inquiry: Inquiry, subject: Subject, name: str, one: Attack, reference: Evaluation | None,
    folder: Path | None,
) -> Iterator[Evaluation]:  # fmt: skip
    from unlearnkit.models.load import model_fingerprint
    from unlearnkit.models.precision import own_precision

    with one.stages(subject) as stages:
        for stage in stages:
            started = time.perf_counter()
            with own_precision(stage.model):
                # The weights of an attacked model are seldom met again, but its name decides what is known.
                examination = inquiry.examination(stage, model_fingerprint(stage.model), plain=subject)
                records = examination.records()
            facts = {
                "name": name, "variant": stage.variant, "level": stage.level, "options": _options(one),
                "seen": sorted(stage.seen), "facts": dict(stage.facts),
                "asks_otherwise": stage.rows is not subject.rows or stage.answer_prefix_tokens > 0,
            }  # fmt: skip
            other = _counterpart(reference, facts)
            result = inquiry.result(
                records, examination, stage.template, other, started, examination.model_name, facts
            )
            if folder is not None and is_main():
                save_evaluation(result, folder / slug(stage.variant))
            yield result


def _counterpart(reference: Evaluation | None, attack: Mapping[str, Any]) -> Evaluation | None:
    """The retain model's evaluation that a stage compares with: the same stage, else the plain one if the
    attack changes only the model."""
    if reference is None:
        return None
    own = reference.under((attack["name"], attack["variant"]), attack["options"])
    return own or (None if attack["asks_otherwise"] else reference)


def _with_metrics(inquiry: Inquiry, stage: Evaluation, reference: Evaluation | None) -> Evaluation:
    """A stage that was read from disk, with the metrics of today."""
    other = _counterpart(reference, stage.summary["attack"])
    metrics = compute_metrics(inquiry.suite, stage.run, other.run if other else None)
    inquiry.explain(metrics, stage.summary["attack"])
    stage.run.meta["metrics"] = described(metrics, inquiry.suite)
    return dataclasses.replace(stage, metrics=metrics)


def _known(folder: Path | None, key: str, inquiry: Inquiry) -> list[Evaluation] | None:
    """The stages that lie in `folder`, if they are of the same attack on the same model and suite."""
    from unlearnkit.evaluation.results import read_evaluation

    found: list[Evaluation] | None = None
    if folder is not None and is_main():
        try:
            written = read_json(folder / STAGES)
            if written["key"] == key:
                entries = {"role": inquiry.role, "label": inquiry.label}
                found = [
                    read_evaluation(folder / name, inquiry.suite, **entries) for name in written["stages"]
                ]
        except (UserError, KeyError, TypeError):
            found = None  # nothing there, or something else: the attack is run
    if processes()[1] > 1:
        import torch.distributed as dist

        told = [found]
        dist.broadcast_object_list(told, src=0)
        found = told[0]
    return found


def _options(one: Attack) -> dict[str, Any]:
    """The options of an attack as plain values."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(one).items()
        if not name.startswith("_")
    }


def _content(value: Any) -> str | None:
    """Names a file or a folder of files by its bytes; None for what is neither."""
    path = Path(value).expanduser() if isinstance(value, str) and 0 < len(value) < 1024 else None
    try:
        if path is None or not path.exists():
            return None
    except OSError:  # no name that a file could have
        return None
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    return fingerprint([hashlib.blake2b(one.read_bytes()).hexdigest() for one in files])


def slug(variant: str) -> str:
    """A variant as the name of a folder: "10 steps" -> "10-steps"."""
    return re.sub(r"[^\w.=]+", "-", variant).strip("-") or "stage"
