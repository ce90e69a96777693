"""Reading the attacked evaluations inside an evaluation folder, attacks/NAME/VARIANT.

attacks/NAME/stages.json is written when an attack is done: whose model was attacked, and which stages there
are. What it does not list is of an earlier attack or of an unfinished one, and is no part of the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from unlearnkit.errors import RecordsError
from unlearnkit.reporting.read import SUMMARY, json_object, load_evaluation
from unlearnkit.reporting.views import AttackView, EvalView

ATTACKS = "attacks"
"""The folder of attacked evaluations inside an evaluation folder: attacks/NAME/VARIANT."""
STAGES = "stages.json"


def load_attacks(evaluations: Mapping[str, EvalView]) -> tuple[tuple[AttackView, ...], tuple[str, ...]]:
    """Every stage of every attack on any of the models, and cautions about what was left out.

    Models are put together in one stage where attack, variant and options are the same; else the stage is
    that of the unlearned model, and `otherwise` names the models that were attacked with other options.

    Returns:
        the stages by attack, then by level and variant; the cautions, without a full stop.

    Raises:
        RecordsError: a stage cannot be read, or does not say what attack it is.
    """
    found: dict[str, dict[tuple[str, str], AttackView]] = {}
    cautions: list[str] = []
    # The unlearned model's stages come first: the others are put beside them.
    for role in sorted(evaluations, key=lambda role: role != "unlearned"):
        found[role] = {}
        for path in _stage_folders(evaluations[role], cautions):
            stage = _stage(path, role)
            key = (stage.name, stage.variant)
            if key in found[role]:
                raise RecordsError(
                    f"{path} holds the same stage ({stage.title}) as a folder beside it; delete one of the "
                    "two"
                )
            found[role][key] = stage
    stages = [_together(key, found) for key in dict.fromkeys(key for one in found.values() for key in one)]
    stages.sort(key=lambda stage: (stage.name, stage.level is None, stage.level or 0.0))
    return tuple(stages), tuple(cautions)


def _stage_folders(view: EvalView, cautions: list[str]) -> list[Path]:
    """The stages of finished attacks on this very model; `cautions` grows by what is left out."""
    found: list[Path] = []
    for folder in sorted(path for path in (view.folder / ATTACKS).glob("*") if path.is_dir()):
        there = sorted(path.name for path in folder.iterdir() if path.is_dir())
        listed = _listed(folder / STAGES, view)
        name = f"{view.folder.name}/{ATTACKS}/{folder.name}"
        if listed is None:
            if there:
                cautions.append(
                    f"{name} belongs to another model or was not finished, and is left out; run the attack "
                    "again"
                )
            continue
        found += [folder / stage for stage in sorted(listed)]
        if others := [stage for stage in there if stage not in listed]:
            cautions.append(
                f"{name}: {', '.join(others)} is no stage of the attack that was finished last, and is left "
                "out; delete it"
            )
    return found


def _listed(path: Path, view: EvalView) -> set[str] | None:
    """The names of the stages that count; None where the attack was not finished or on another model."""
    if not path.exists():
        return None
    written = json_object(path)
    own = view.summary.get("fingerprint")
    if not own or written.get("of") != own:
        return None
    names = written.get("stages")
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise RecordsError(f"{path} does not list the stages of the attack; delete it and attack again")
    return set(names)


def _stage(path: Path, role: str) -> AttackView:
    view = load_evaluation(path, role=role)
    attack = view.summary.get("attack")
    if not isinstance(attack, dict) or not attack.get("name"):
        raise RecordsError(
            f"{path / SUMMARY} does not say which attack it is; delete {path} and attack again"
        )
    try:
        level = None if attack.get("level") is None else float(attack["level"])
        return AttackView(
            str(attack["name"]),
            str(attack.get("variant") or ""),
            level,
            dict(attack.get("options") or {}),
            dict(attack.get("facts") or {}),
            frozenset(str(one) for one in attack.get("seen") or ()),
            {role: view},
        )
    except (TypeError, ValueError) as error:
        raise RecordsError(f"{path / SUMMARY}: the attack cannot be read ({error}); attack again") from None


def _together(key: tuple[str, str], found: Mapping[str, Mapping[tuple[str, str], AttackView]]) -> AttackView:
    """One stage on all models that were attacked alike; what any of them was shown is left out of all."""
    stage = next(one[key] for one in found.values() if key in one)
    otherwise = set()
    for role, one in found.items():
        if role in stage.evaluations:
            continue
        other = one.get(key)
        if other is not None and other.options == stage.options:
            stage = replace(
                stage, seen=stage.seen | other.seen, evaluations={**stage.evaluations, **other.evaluations}
            )
        elif any(own.name == stage.name and own.options != stage.options for own in one.values()):
            otherwise.add(role)
    return replace(stage, otherwise=frozenset(otherwise))
