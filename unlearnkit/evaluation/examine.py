"""One model, one suite: every question of the suite asked once, and the records of the answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import pandas as pd

from unlearnkit.errors import ModelError
from unlearnkit.evaluation import capability, probes
from unlearnkit.evaluation.attacks.subject import Subject
from unlearnkit.evaluation.continuations import continuation_questions
from unlearnkit.evaluation.cost import Budget, Cost
from unlearnkit.evaluation.decode import Sampling
from unlearnkit.evaluation.metrics.rouge import rouge_l
from unlearnkit.evaluation.questions import (
    Question,
    generation_questions,
    likelihood_questions,
    with_answer_prefix,
)
from unlearnkit.evaluation.records import (
    ANSWER,
    ANSWER_LIKELIHOOD,
    CONTINUE_TEXT,
    GENERATE_ANSWER,
    GENERATION,
    GLOBAL_NORM,
    GRADIENT_NORM,
    JUDGED_LIKELIHOOD,
    MEAN_NORM,
    SAMPLE,
    SAMPLE_ANSWER,
    new_records,
)
from unlearnkit.evaluation.share import ask_missing
from unlearnkit.evaluation.store import JointStore, ResultStore, Stores
from unlearnkit.evaluation.suite import Ask, Suite
from unlearnkit.evaluation.terms import all_terms, term_records
from unlearnkit.files import fingerprint
from unlearnkit.models.load import is_named_by_weights

Row: TypeAlias = dict[str, Any]
#: A question, the bound of new tokens, and how it is drawn (None: greedily).
_Wanted: TypeAlias = tuple[Question, int, Sampling | None]
#: The data set that attacks on questions change by default, and whose samples stand in for its generations.
FORGET = "forget"


class Examination:
    """A subject under a suite.

    Args:
        subject: model, tokenizer, template and rows.
        suite: what is asked.
        model_name: the model's fingerprint, which names its answers on disk.
        judge: the target model and its fingerprint, for the suite's `judged_likelihood`; made when needed.
        label: for progress bars.
        stores: shared with other examinations, which then know what this one has found.
        others: of a combined model: further weights of its networks, by the fingerprint that it has with
            them; likelihoods are found for them as well, from the same forward passes.
    """

    def __init__(
        self, subject: Subject, suite: Suite, model_name: str, budget: Budget, *, label: str = "",
        judge: Callable[[], tuple[Any, str]] | None = None,
        plain_rows: Mapping[str, Sequence[Any]] | None = None, stores: Stores | None = None,
        others: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:  # fmt: skip
        self.subject, self.suite, self.budget, self.label = subject, suite, budget, label
        self.model_name, self.judge = model_name, judge
        self.plain_rows = subject.rows if plain_rows is None else plain_rows
        self.cache = budget.cache and is_named_by_weights(subject.model)
        self.stores = Stores(enabled=self.cache) if stores is None else stores
        self.others = dict(others or {})
        self.cost = Cost()
        tokenizer = subject.tokenizer
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.stop = probes.stop_tokens(subject.model, tokenizer)
        self.attacked = str(subject.facts.get("dataset", FORGET))
        self._asked: list[Question] = []

    def records(self) -> pd.DataFrame:
        """Ask everything; what the store knows is not asked again."""
        model = self.subject.model
        was_training = model.training
        model.eval()
        try:
            rows = [*self._likelihoods(), *self._generations(), *self._gradients(), *self._tasks()]
            rows += term_records(self.suite.probes, self.subject.rows)
        finally:
            model.train(was_training)
        suite = self.suite.versioned
        return new_records({**row, "suite": suite} for row in rows)

    @property
    def asked(self) -> list[Question]:
        """Every question of `records`, in the order of the records."""
        return self._asked

    # ---- Likelihoods ---------------------------------------------------------------------------------------

    def _likelihoods(self) -> Iterator[Row]:
        terms = all_terms(self.suite.probes, self.subject.rows)
        questions = self._prefixed(
            question
            for ask, rows in self._asks(ANSWER_LIKELIHOOD)
            for question in likelihood_questions(
                ask.dataset, rows, self.subject.tokenizer, self.subject.template, terms=terms
            )
        )
        if self.others:
            self._score_all(questions)
        results = self._score(questions, self.subject.model, self.model_name, "scoring answers")
        return (q.scored(results[q.pair], self.stop) for q in questions)

    def _score(self, questions: Sequence[Question], model: Any, name: str, title: str) -> ResultStore:
        store = self.stores(name, ANSWER_LIKELIHOOD)
        asked = self._collect(
            store, {q.pair: q for q in questions}, title,
            lambda mine, done: probes.score_answers(
                model, mine, pad_id=self.pad_id, batch_tokens=self.budget.batch_tokens, done=done
            ),
        )  # fmt: skip
        self._scored(asked)
        return store

    def _score_all(self, questions: Sequence[Question]) -> None:
        """Likelihoods at the model's own weights and at all others, from one pass of each network."""
        names = [self.model_name, *self.others]
        weights = [self.subject.model.config.weights, *self.others.values()]
        asked = self._collect(
            JointStore([self.stores(name, ANSWER_LIKELIHOOD) for name in names]),
            {q.pair: q for q in questions}, f"scoring answers at {len(names)} alphas",
            lambda mine, done: probes.score_at(
                self.subject.model, weights, mine, pad_id=self.pad_id,
                batch_tokens=self.budget.batch_tokens, done=done,
            ),
        )  # fmt: skip
        self._scored(asked)

    def _scored(self, asked: Sequence[Question]) -> None:
        self.cost.scored_pairs += len(asked)
        self.cost.tokens += sum(len(q.prompt_ids) + len(q.answer_ids) for q in asked)

    # ---- Generations ---------------------------------------------------------------------------------------

    def _generations(self) -> Iterator[Row]:
        """Answers, samples and continuations; what is generated alike is generated together."""
        spoken = list(self._spoken([*self._answers(), *self._samples(), *self._continuations()]))
        spoken = self._worst_of(spoken)
        yield from spoken
        yield from self._judged([row for row in spoken if row["probe"] == GENERATE_ANSWER])

    def _answers(self) -> Iterator[_Wanted]:
        for ask, rows in self._asks(GENERATE_ANSWER):
            questions = self._written(GENERATE_ANSWER, GENERATION, ask, rows)
            if ask.dataset == self.attacked and self.subject.best_of > 1:
                drawn = Ask(ask.dataset, samples=self.subject.best_of, **self._drawn_how())
                yield from self._drawn(questions, drawn, self._bound(ask))
            else:
                yield from ((q, self._bound(ask), None) for q in questions)

    def _samples(self) -> Iterator[_Wanted]:
        for ask, rows in self._asks(SAMPLE_ANSWER):
            yield from self._drawn(self._written(SAMPLE_ANSWER, SAMPLE, ask, rows), ask, self._bound(ask))

    def _continuations(self) -> Iterator[_Wanted]:
        room = probes.most_tokens(self.subject.model)
        for ask, rows in self._asks(CONTINUE_TEXT):
            asked = continuation_questions(
                ask.dataset, rows, self.subject.tokenizer, ask=ask, max_new_tokens=self._bound(ask), room=room
            )
            self._asked += [question for question, _ in asked]
            yield from ((question, bound, None) for question, bound in asked)

    def _written(self, probe: str, field: str, ask: Ask, rows: Sequence[Any]) -> list[Question]:
        shots = self.subject.rows.get(ask.shots, ()) if ask.shots else ()
        return self._prefixed(
            generation_questions(
                ask.dataset, rows, self.subject.tokenizer, self.subject.template, ask=ask, shots=shots,
                probe=probe, field=field,
            )
        )  # fmt: skip

    def _drawn(self, questions: Iterable[Question], ask: Ask, bound: int) -> Iterator[_Wanted]:
        sampling = Sampling(ask.temperature, ask.top_p, ask.seed)
        for question in questions:
            for index in range(ask.samples):
                yield dataclasses.replace(question, index=index), bound, sampling

    def _drawn_how(self) -> dict[str, Any]:
        """How an attack draws its samples."""
        facts = self.subject.facts
        return {name: facts[name] for name in ("temperature", "top_p", "seed") if name in facts}

    def _spoken(self, wanted: Sequence[_Wanted]) -> Iterator[Row]:
        """The records of what was generated, in the order of the questions."""
        groups: dict[tuple[int, Sampling | None], list[Question]] = {}
        for question, bound, sampling in wanted:
            groups.setdefault((bound, sampling), []).append(question)
        results = {key: self._generate(questions, *key) for key, questions in groups.items()}
        for question, bound, sampling in wanted:
            name = question.prompt_name if sampling is None else question.sample_name
            yield question.spoken(results[bound, sampling][name], self.stop)

    def _generate(
        self, questions: Sequence[Question], max_new_tokens: int, sampling: Sampling | None
    ) -> ResultStore:
        subject = self.subject
        drawn = [] if sampling is None else [vars(sampling)]
        store = self.stores(
            self.model_name, GENERATE_ANSWER, max_new_tokens, self.stop,
            probes.generation_settings(subject.model), fingerprint(subject.tokenizer.get_vocab()), *drawn,
        )  # fmt: skip
        asked = self._collect(
            store, {q.prompt_name if sampling is None else q.sample_name: q for q in questions},
            "generating answers",
            lambda mine, done: probes.generate_answers(
                subject.model, subject.tokenizer, mine, pad_id=self.pad_id,
                batch_tokens=self.budget.batch_tokens, max_new_tokens=max_new_tokens, done=done,
                sampling=sampling,
            ),
        )  # fmt: skip
        self.cost.generated += len(asked)
        self.cost.tokens += sum(len(q.prompt_ids) + len(q.answer_ids) for q in asked)
        return store

    def _worst_of(self, rows: list[Row]) -> list[Row]:
        """Of several samples of an answer, the one that gives most away stands as the generation."""
        if self.subject.best_of == 1:
            return rows
        worst: dict[Any, Row] = {}
        for row in rows:
            several = row["probe"] == GENERATE_ANSWER and row["dataset"] == self.attacked
            key = (row["example_id"],) if several else id(row)
            if key not in worst or _leak(row) > _leak(worst[key]):
                worst[key] = {**row, "index": 0} if several else row
        return list(worst.values())

    def _judged(self, spoken: Sequence[Row]) -> Iterator[Row]:
        """The target model's likelihood of what this model says: babble is unlikely."""
        wanted = {ask.dataset for ask, _ in self._asks(JUDGED_LIKELIHOOD)}
        rows = [row for row in spoken if row["dataset"] in wanted and row["text"] is not None]
        if not rows or not self.judge:
            return
        asked = {(q.dataset, q.example_id): q for q in self._asked if q.probe == GENERATE_ANSWER}
        questions = []
        for row in rows:
            one = asked[row["dataset"], row["example_id"]]
            ended = row["num_tokens"] > len(row["tokens"]) > 0  # by itself, not at the bound
            said = (*row["tokens"], *([self.subject.tokenizer.eos_token_id] if ended else []))
            questions.append(
                dataclasses.replace(
                    one, probe=JUDGED_LIKELIHOOD, field=GENERATION, answer=row["reference_text"],
                    answer_ids=said,
                )
            )  # fmt: skip
        model, name = self.judge()
        if max(max(q.answer_ids, default=0) for q in questions) >= _vocabulary(model):
            raise ModelError(
                "the target model knows fewer tokens than the model whose answers it judges; give the target "
                "of this model, with the same tokenizer"
            )
        was_training = model.training
        model.eval()
        try:
            results = self._score(questions, model, name, "the target model judging answers")
        finally:
            model.train(was_training)
        for question, row in zip(questions, rows, strict=True):
            yield {**question.scored(results[question.pair], self.stop), "text": row["text"]}

    # ---- Gradients and tasks -------------------------------------------------------------------------------

    def _gradients(self) -> Iterator[Row]:
        from unlearnkit.evaluation.gradients import gradient_norms

        if not self._gradients_tell():
            return
        questions = [
            question
            for ask, rows in self._asks(GRADIENT_NORM)
            for question in likelihood_questions(
                ask.dataset, rows, self.subject.tokenizer, self.subject.template, probe=GRADIENT_NORM
            )
            if question.field == ANSWER
        ]
        self._asked += questions
        fields = [GLOBAL_NORM]
        metrics = self.suite.metrics.values()
        if any(s.options.get("attack") == GRADIENT_NORM and s.options.get("compat") for s in metrics):
            fields.append(MEAN_NORM)
        store = self.stores(self.model_name, GRADIENT_NORM, self.stop, fields)
        asked = self._collect(
            store, {q.pair: q for q in questions}, "gradients",
            lambda mine, done: gradient_norms(
                self.subject.model, mine, stop=self.stop, which=fields, done=done
            ),
        )  # fmt: skip
        self.cost.others += len(asked)
        for question in questions:
            for field in fields:
                yield question.numbered(field, store[question.pair][field])

    def _gradients_tell(self) -> bool:
        """Whether there is a holdout to compare with: a backward pass per example is not made for nothing."""
        return any(
            {spec.dataset, spec.options.get("holdout", "holdout")} <= set(self.subject.rows)
            for spec in self.suite.metrics.values()
            if spec.options.get("attack") == GRADIENT_NORM
        )

    def _tasks(self) -> Iterator[Row]:
        if self.suite.lm_eval is None:
            return
        rows = capability.run_tasks(
            self.subject.model,
            self.subject.tokenizer,
            self.suite.lm_eval,
            suite=self.suite.versioned,
            cache=self.cache,
            progress=self.budget.progress,
        )
        yield from rows

    # ---- Shared --------------------------------------------------------------------------------------------

    def _asks(self, probe: str) -> Iterator[tuple[Ask, Sequence[Any]]]:
        """What a probe is asked, with the rows, where there are any."""
        for ask in self.suite.probes.of(probe):
            rows: Sequence[Any] = self.subject.rows.get(ask.dataset) or ()
            if ask.limit is not None and rows:  # the same examples, whichever an attack leaves out
                first = {row["example_id"] for row in self.plain_rows[ask.dataset][: ask.limit]}
                rows = [row for row in rows if row["example_id"] in first]
            if rows:
                yield ask, rows

    def _prefixed(self, questions: Iterable[Question]) -> list[Question]:
        """Where the attack gives the first tokens of an answer away, they are part of the prompt."""
        count, made = self.subject.answer_prefix_tokens, list(questions)
        if count:
            tokenizer = self.subject.tokenizer
            made = [
                with_answer_prefix([q], count, tokenizer)[0] if q.dataset == self.attacked else q
                for q in made
            ]
        self._asked += made
        return made

    def _bound(self, ask: Ask) -> int:
        return self.budget.max_new_tokens or ask.max_new_tokens or self.suite.probes.max_new_tokens

    def _collect(
        self, store: ResultStore | JointStore, asked: Mapping[str, Question], title: str,
        probe: Callable[[list[Question], Callable[[int], Any]], Any],
    ) -> list[Question]:  # fmt: skip
        title = f"{self.label}: {title}" if self.label else title
        return ask_missing(store, asked, title, self.budget.progress, probe)


def _vocabulary(model: Any) -> float:
    embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    return float(getattr(embeddings, "num_embeddings", "inf"))


def _leak(row: Row) -> float:
    text = row["text"]
    value = rouge_l(row["reference_text"], text) if isinstance(text, str) else float("nan")
    return value if value == value else -1.0
