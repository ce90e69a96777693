"""What can be known to fail in an evaluation before a model is loaded or trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unlearnkit import lookup
from unlearnkit.errors import ModelError, RecipeError, UnreachableError
from unlearnkit.evaluation.suite import Suite, load_suite
from unlearnkit.recipe import Recipe
from unlearnkit.run import resolve_path, shown_source

#: Told about what cannot be reached from here; without one, it is an error.
Note = Callable[[str], None]


def suite_of(recipe: Recipe) -> Suite | None:
    """The recipe's suite; data sets that it leaves open are the recipe's own streams, as is the root.

    Raises:
        RecipeError: no such suite, split or data set.
    """
    spec, own = recipe.evaluation, recipe.data
    if spec.suite is None:
        return None
    data = dict(spec.data)
    if spec.split is not None:
        data["split"] = spec.split
    if own.root is not None:
        data.setdefault("root", own.root)
    suite = load_suite(spec.suite, data)
    for name, sources in suite.data.items():
        if not sources and name in own.streams:
            suite.data[name] = list(own.streams[name])
    return suite


def also_suites(recipe: Recipe) -> list[Suite]:
    """The recipe's further suites; data and split of the recipe's evaluation hold where they are known.

    Raises:
        RecipeError: no such suite or split, or one that is named twice.
    """
    spec, suites = recipe.evaluation, []
    for name in spec.also:
        known = {*load_suite(name).data, "root"}
        data = {key: value for key, value in spec.data.items() if key in known}
        evaluation = dataclasses.replace(spec, suite=name, data=data, split=None)
        suite = suite_of(dataclasses.replace(recipe, evaluation=evaluation))
        assert suite is not None
        suites.append(suite)
    names = [suite.name for suite in suites] + [spec.suite]
    if twice := next((name for name in names if name is not None and names.count(name) > 1), None):
        raise RecipeError(
            f"{shown_source(recipe.source)}: the suite {twice} is named twice, in evaluation.suite and "
            "evaluation.also; leave one of them out"
        )
    return suites


def check_evaluation(recipe: Recipe, note: Note | None = None) -> None:
    """Read the suite's data and look at the retain model, so that no training ends before a missing file.

    Raises:
        DataError, ModelError, RecordsError: what would stop the evaluation.
    """
    from unlearnkit.evaluation import capability
    from unlearnkit.evaluation.attacked import make_attacks
    from unlearnkit.evaluation.requirements import check_inputs
    from unlearnkit.evaluation.runner import load_datasets

    main, reference = suite_of(recipe), recipe.evaluation.reference
    make_attacks(recipe.evaluation.attacks)
    rows = None
    for suite in filter(None, (*also_suites(recipe), main)):
        try:
            if suite.lm_eval is not None:
                capability.check(suite.lm_eval)
            rows = load_datasets(suite)
            check_inputs(suite, rows, has_retain=reference is not None)
        except UnreachableError as error:
            if note is None:
                raise
            note(str(error))
            rows = None
    if main is None:
        return
    suite = main
    try:
        if reference is not None:
            _check_reference(evaluation_or_model(str(resolve_path(reference))), suite, rows)
    except ModelError as error:
        if note is None or reference is None or Path(reference).exists():
            raise
        note(f"evaluation.reference: {error}")


def during_suite(recipe: Recipe) -> Suite | None:
    """The suite that is run while training, whole; None without `evaluation.every`.

    By default it is `forget` on the recipe's own streams. Split, root and data of the recipe's evaluation
    hold for it too, as far as it knows these data sets.

    Raises:
        RecipeError: no such suite, split or data set.
    """
    spec = recipe.evaluation
    if spec.every is None:
        return None
    name = spec.during or "forget"
    data = spec.data
    if name != spec.suite:
        known = {*load_suite(name, {"split": spec.split} if spec.split else {}).data, "root"}
        data = {key: value for key, value in data.items() if key in known}
    return suite_of(dataclasses.replace(recipe, evaluation=dataclasses.replace(spec, suite=name, data=data)))


def note_answers_asked(recipe: Recipe, note: Note) -> None:
    """Say so where a stream is trained on the very answers that the evaluation asks about."""
    suite = suite_of(recipe)
    if suite is None:
        return
    asked = {(one.path or suite.root, one.name) for one in suite.data.get("forget", ())}
    for name, specs in recipe.data.streams.items():
        for one in specs:
            columns = set((one.columns or {}).values()) & {"paraphrased_answer", "perturbed_answer"}
            if columns and (one.path or recipe.data.root, one.name) in asked:
                note(
                    f"data.{name} is trained on {min(columns)}, which the evaluation asks about: forget "
                    "quality will look better than on new wordings; take others for numbers to compare"
                )


def check_during(recipe: Recipe, note: Note | None = None) -> None:
    """Look at the rules, the suite and the data of the evaluation while training, before a model is loaded.

    Raises:
        RecipeError, DataError: what would stop it at step 0, or never let a checkpoint win.
    """
    from unlearnkit.evaluation.requirements import needs_retain
    from unlearnkit.evaluation.runner import load_datasets
    from unlearnkit.training.light_suite import refuse_unknown_metrics
    from unlearnkit.training.selection import Choice, Keep, Stop

    suite, spec = during_suite(recipe), recipe.evaluation
    if suite is None:
        return
    if getattr(lookup.method(recipe.method).trainer, "served_kind", None) == "uld":
        raise RecipeError(
            f"{shown_source(recipe.source)}: evaluation.every measures the network that is trained, and what "
            f"{recipe.method} trains is the assistant alone, which remembers; leave it out: the pair is "
            "measured at the end, with evaluation.alphas at several strengths"
        )
    if not any(suite.data.values()) and suite.lm_eval is None:
        raise RecipeError(
            f"{shown_source(recipe.source)}: evaluation.every runs the suite {suite.name}, but there is "
            f"none of its data sets here ({', '.join(suite.data)}); choose: evaluation.during=NAME"
        )
    keep = None if spec.keep is None else Keep.parse(spec.keep)
    names = Choice(keep, None if spec.stop is None else Stop.parse(spec.stop)).metrics
    refuse_unknown_metrics(names, suite)
    for name in names:
        if needs_retain(suite.metrics[name]) and spec.reference is None:
            raise RecipeError(
                f"{shown_source(recipe.source)}: the rule of evaluation.{'keep' if keep else 'stop'} goes by "
                f"{name}, which compares with a retain model; name its evaluation with "
                "evaluation.reference=FOLDER"
            )
    try:
        load_datasets(suite)
    except UnreachableError as error:
        if note is None:
            raise
        note(str(error))


def _check_reference(path: str, suite: Suite, rows: Mapping[str, Any] | None) -> None:
    from unlearnkit.evaluation.results import is_evaluation, read_evaluation, refuse_other_data
    from unlearnkit.models.load import load_tokenizer

    if not is_evaluation(path):
        load_tokenizer(path)
        return
    found = read_evaluation(path, suite)
    if rows is not None:
        refuse_other_data(suite, rows, found.run)


def evaluation_or_model(path: str) -> str:
    """A run's folder stands for its model."""
    inner = Path(path) / "model"
    return str(inner) if not (Path(path) / "config.json").exists() and inner.is_dir() else path
