"""evaluate(): every question of a suite asked once, metrics of the records, the same under each attack."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearnkit.errors import DataError, ModelError, RecipeError
from unlearnkit.evaluation import capability
from unlearnkit.evaluation.attacks import Attack, Subject
from unlearnkit.evaluation.cost import Budget
from unlearnkit.evaluation.inquiry import Inquiry, Judge
from unlearnkit.evaluation.inquiry import versions as versions
from unlearnkit.evaluation.records import JUDGED_LIKELIHOOD
from unlearnkit.evaluation.requirements import check_inputs
from unlearnkit.evaluation.results import (
    Evaluation,
    is_evaluation,
    read_evaluation,
    refuse_other_data,
    save_evaluation,
)
from unlearnkit.evaluation.serving import check_alphas, refuse_without_alpha
from unlearnkit.evaluation.share import is_main
from unlearnkit.evaluation.suite import Suite, load_suite
from unlearnkit.recipe import TemplateSpec


def evaluate(
    model: Any,
    tokenizer: Any = None,
    suite: str | Path | Suite = "tofu",
    data: Mapping[str, Any] | None = None,
    reference: Any = None,
    *,
    target: Any = None,
    attacks: Sequence[str | Attack] | Mapping[str, Mapping[str, Any]] = (),
    alphas: Sequence[float] = (),
    template: TemplateSpec | None = None,
    output: str | Path | Callable[[Evaluation], Path] | None = None,
    batch_tokens: int = 16384,
    max_new_tokens: int | None = None,
    role: str = "unlearned",
    label: str = "",
    cache: bool = True,
    progress: bool = True,
    load_options: Mapping[str, Any] | None = None,
    target_options: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Run a suite on a model, and under each attack once more.

    Called by all processes of a distributed run, it shares the questions out among them; every process gets
    the whole result, and the first one writes it.

    Args:
        model: a causal language model, or the path or hub id of one (an adapter's folder works too).
        tokenizer: its tokenizer; by default the one saved with the model.
        suite: a shipped suite's name, a YAML file, or a loaded suite.
        data: overrides of the suite's data section: {"split": "forget10", "root": FOLDER, "forget": FILE,
            ...}; under "lm_eval" those of its tasks.
        reference: the retain model, for the metrics that compare with one: an Evaluation, the folder of one,
            or a model (object, folder or hub id), which is then evaluated on the same data.
        target: the model before unlearning (object, folder or hub id), which judges how likely the answers
            are where the suite asks for that.
        attacks: names of attacks (`unlearnkit ls attacks`), attacks, or a mapping from names to options.
        alphas: of a combined model (ULD's pair): evaluate it with these alphas besides its own, each a whole
            evaluation in `.alphas`; all likelihoods come from one pass of each network.
        template: how prompts are written; must be the one used in training.
        output: a folder for `records.parquet` and `summary.json`, or what names it when they are known;
            attacked ones lie in `attacks/` below it, other alphas in `alphas/`.
        batch_tokens: padded tokens at most in one forward pass; results do not depend on it.
        max_new_tokens: bound of a generation, instead of the suite's.
        role, label: what the model is in a report ("target", "retain" or "unlearned") and what it is called.
        cache: keep results on disk by content, and reuse them.
        progress: show progress bars.
        load_options: how a model that is given by its path is loaded: dtype, revision, attn_implementation.
        target_options: the same for the target model.

    Raises:
        RecipeError, DataError, ModelError, RecordsError: before the model is run where that is possible.
    """
    from unlearnkit.data.encoding import encode
    from unlearnkit.data.formats import Template
    from unlearnkit.evaluation.alphas import Alphas, at_alphas
    from unlearnkit.evaluation.attacked import make_attacks, under_attack
    from unlearnkit.models.load import (
        keep_packed_weights,
        load_model,
        load_tokenizer,
        model_fingerprint,
        to_device,
    )
    from unlearnkit.models.precision import own_precision

    started = time.perf_counter()
    if isinstance(suite, Suite) and data:
        raise RecipeError(
            "`data` changes a suite while it is loaded; give it to load_suite(), or the suite by its name"
        )
    suite = suite if isinstance(suite, Suite) else load_suite(suite, data)
    if suite.lm_eval is not None:
        capability.check(suite.lm_eval)
    made, asked_alphas = make_attacks(attacks), check_alphas(alphas)
    if asked_alphas:
        refuse_without_alpha(model)
    rows, absent = load_rows(suite)
    check_inputs(suite, rows, has_retain=reference is not None)
    if is_evaluation(reference):  # read at once, so that a broken one is refused before any model runs
        reference = read_evaluation(reference, suite)
    if isinstance(reference, Evaluation):
        refuse_other_data(suite, rows, reference.run)
    if tokenizer is None:
        path = str(model) if isinstance(model, str | Path) else model.config._name_or_path
        if not path:
            raise ModelError(
                "the model was not loaded from anywhere, so its tokenizer is not known; give `tokenizer`"
            )
        tokenizer = load_tokenizer(path)
    if suite.probes.term_lists & set(rows):
        encode(tokenizer, "", offsets=True)  # terms are looked for in the tokens: refused if it cannot be
    written = Template.for_tokenizer(tokenizer, template)
    budget = Budget(batch_tokens, max_new_tokens, cache, progress)
    if isinstance(model, str | Path):
        model = to_device(load_model(str(model), **(load_options or {})))
        if asked_alphas:
            refuse_without_alpha(model)
    judge = Judge(target, role, model, target_options) if JUDGED_LIKELIHOOD in suite.probes.asks else None
    inquiry = Inquiry(suite, budget, role, label or role, absent, judge)
    subject = Subject(keep_packed_weights(model), tokenizer, written, rows)
    for one in made.values():  # an attack that cannot be made is refused before anything is asked
        if callable(refuse := getattr(one, "refuse", None)):
            refuse(subject)
    name = model_fingerprint(model)
    sweep = Alphas.of(model, asked_alphas, cache=cache) if asked_alphas else None
    with own_precision(model):
        examination = inquiry.examination(subject, name, **(sweep.shared(model) if sweep else {}))
        records = examination.records()
    other = _reference(reference, suite, tokenizer, template, budget)
    result = inquiry.result(records, examination, written, other, started, name)
    folder = output(result) if callable(output) else None if output is None else Path(output)
    if folder is not None and is_main():
        save_evaluation(result, folder)
    if sweep is not None:
        result.others = at_alphas(inquiry, subject, sweep, result, other, folder)
    if made:
        result.attacked = under_attack(inquiry, subject, made, result, other, folder)
    return result


def load_rows(suite: Suite) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """The rows of each data set that has a source, and why others are absent that may be.

    Raises:
        DataError: a set that must be there cannot be read, or none has a source although something is asked.
    """
    from unlearnkit.data.streams import load_stream
    from unlearnkit.evaluation.terms import load_terms

    rows: dict[str, list[dict[str, Any]]] = {}
    absent: dict[str, str] = {}
    for key, sources in suite.data.items():
        if not sources:
            absent[key] = f"no {key} set was given"
            continue
        try:
            where, name = suite.root, f"evaluation.data.{key}"
            if key in suite.probes.term_lists:
                rows[key] = load_terms(sources, root=where, name=name)
            else:
                rows[key] = load_stream(sources, root=where, name=name).to_list()
        except DataError as error:
            if key not in suite.optional:
                raise
            absent[key] = str(error)
    if not rows and suite.lm_eval is None:
        raise DataError(f"suite {suite.name} has no data; give data.forget (and data.retain)")
    return rows, absent


def load_datasets(suite: Suite) -> dict[str, list[dict[str, Any]]]:
    """The rows of each data set that has a source (see `load_rows`)."""
    return load_rows(suite)[0]


def _reference(
    reference: Any, suite: Suite, tokenizer: Any, template: TemplateSpec | None, budget: Budget
) -> Evaluation | None:
    """The retain model's evaluation: as given, or made now on the same data."""
    if reference is None or isinstance(reference, Evaluation):
        return reference
    own = None if isinstance(reference, str | Path) else tokenizer
    return evaluate(
        reference, own, suite, template=template, role="retain", label="retain model",
        batch_tokens=budget.batch_tokens, max_new_tokens=budget.max_new_tokens, cache=budget.cache,
        progress=budget.progress,
    )  # fmt: skip
