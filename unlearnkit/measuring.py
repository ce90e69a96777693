"""A recipe's evaluations: its suite on the retain, target and unlearned model, attacks, further suites."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearnkit.evaluation.attacked import list_stages, slug
from unlearnkit.evaluation.attacks import attack_class
from unlearnkit.evaluation.results import ATTACKS, Evaluation, is_evaluation, read_evaluation
from unlearnkit.evaluation.runner import evaluate
from unlearnkit.evaluation.share import is_main, processes
from unlearnkit.evaluation.suite import Suite
from unlearnkit.files import fingerprint, one_at_a_time
from unlearnkit.preflight_evaluation import also_suites, evaluation_or_model, suite_of
from unlearnkit.recipe import Recipe
from unlearnkit.run import RunDir, resolve_path
from unlearnkit.training.reference import cache_folder


@dataclass
class Measuring:
    """The evaluations of one run.

    Args:
        recipe: the resolved recipe.
        run: its folder.
        target_path: the model before unlearning; None where the recipe makes a model from scratch.
        progress: show progress bars.
    """

    recipe: Recipe
    run: RunDir
    target_path: str | None
    progress: bool = True
    asked: int = field(default=0, init=False)

    def main(self) -> dict[str, Evaluation]:
        """The recipe's suite: the retain model where there is one, the target and the unlearned model.

        The retain model comes first, since others compare with it; attacks follow each model.
        """
        suite = suite_of(self.recipe)
        spec = self.recipe.evaluation
        return {} if suite is None else self._all(suite, spec.attacks, spec.alphas)

    def also(self) -> dict[str, dict[str, Evaluation]]:
        """Each further suite, without attacks and at one alpha."""
        return {suite.name: self._all(suite, {}) for suite in also_suites(self.recipe)}

    def _all(
        self, suite: Suite, attacks: Mapping[str, Any], alphas: Sequence[float] = ()
    ) -> dict[str, Evaluation]:
        spec, found = self.recipe.evaluation, dict[str, Evaluation]()
        roles: dict[str, tuple[str, str | None]] = {"retain": ("retain model", resolve_path(spec.reference))}
        roles["target"] = ("target model", self.target_path if spec.before else None)
        roles["unlearned"] = (self.recipe.name.rsplit("/", 1)[-1], str(self.run.model))
        for role, (label, path) in roles.items():
            if path is not None:
                own = _of_role(attacks, role) if role in spec.attack_roles else {}
                several = alphas if role == "unlearned" else ()
                one = self._one(suite, role, label, path, found.get("retain"), own, several)
                self.asked += sum(part.asked for part in (one, *one.attacked, *one.others.values()))
                found[role] = one
        return found

    def _one(
        self, suite: Suite, role: str, label: str, model: str, retain: Evaluation | None,
        attacks: Mapping[str, Any], alphas: Sequence[float],
    ) -> Evaluation:  # fmt: skip
        from unlearnkit.models.load import load_tokenizer

        folder, spec = self.run.evaluation(suite.name, role), self.recipe.evaluation
        model = evaluation_or_model(model)
        if is_evaluation(model):
            found = read_evaluation(model, suite, role=role, label=label)
            if is_main():
                found.run.save(folder)
                _save_stages(found, folder)
            return found
        own = self.recipe.model
        as_trained = {
            "dtype": own.dtype, "revision": own.revision, "attn_implementation": own.attn_implementation,
        }  # fmt: skip
        loading: dict[str, Any] = {"target_options": as_trained}
        if role != "retain":  # as it was loaded to be trained; an adapter's base model as well
            loading["load_options"] = as_trained
        if role == "target":
            loading["tokenizer"] = load_tokenizer(own.tokenizer or model, revision=own.revision)
        with _own_turn(role, model, suite):
            return evaluate(
                model, suite=suite, reference=retain, target=self.target_path, attacks=attacks,
                alphas=alphas, role=role, label=label, output=folder, template=self.recipe.data.template,
                batch_tokens=spec.batch_tokens, max_new_tokens=spec.max_new_tokens, progress=self.progress,
                **loading,
            )  # fmt: skip


def _of_role(attacks: Mapping[str, Any], role: str) -> Mapping[str, Any]:
    """The attacks that mean something for a role's model."""
    if role == "unlearned":
        return attacks
    return {name: it for name, it in attacks.items() if getattr(attack_class(name), "controlled", True)}


@contextlib.contextmanager
def _own_turn(role: str, model: str, suite: Suite) -> Iterator[None]:
    """Runs side by side share their target and retain models: the first one asks, the others read.

    A run of several processes does not wait: the others would sit in a collective until it times out.
    """
    lock = cache_folder() / "locks" / fingerprint(model, suite.name)
    with one_at_a_time(lock) if role != "unlearned" and processes()[1] == 1 else contextlib.nullcontext():
        yield


def _save_stages(found: Evaluation, folder: Path) -> None:
    """Take over the stages of a finished evaluation, so that they serve as the control."""
    by_attack: dict[str, list[Evaluation]] = {}
    for stage in found.attacked:
        name, variant = stage.stage or ("", "")
        stage.run.save(folder / ATTACKS / name / slug(variant))
        by_attack.setdefault(name, []).append(stage)
    for name, stages in by_attack.items():
        list_stages(folder / ATTACKS / name, stages, found.summary["fingerprint"])
