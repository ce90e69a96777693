"""Terms: what is said of them, and how likely the rest is. Values worked by hand; marks from offsets; bad
input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from helpers_metrics import answer, generation
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnkit.data.columns import canonical
from unlearnkit.data.formats import Template
from unlearnkit.data.terms import term_pattern
from unlearnkit.errors import DataError, ModelError, RecipeError, RecordsError
from unlearnkit.evaluation import metrics
from unlearnkit.evaluation.metrics.mentions import mentions_in
from unlearnkit.evaluation.questions import likelihood_questions, with_answer_prefix
from unlearnkit.evaluation.records import ADDED, EvalRun, new_records
from unlearnkit.evaluation.runner import evaluate

HIGH, LOW = True, False


def terms(*texts: str, dataset: str = "terms") -> list[dict[str, Any]]:
    """The records of a list of terms."""
    shared = {"probe": "list_terms", "dataset": dataset, "field": "term"}
    return [{**shared, "example_id": text, "text": text} for text in texts]


def marked(example_id: str, logps: list[float], risky: list[bool], prompt: str) -> dict[str, Any]:
    return {**answer(example_id, logps), "risky": risky, "prompt": prompt}


SAID = new_records(
    [
        *terms("Ana Reyes", "Reyes", r"/\d{4}/"),
        generation("a", "Ana Reyes wrote in 1984.", "Ana  Reyes wrote, Reyes said."),
        generation("b", "She wrote elegies.", "She wrote elegies in 1984 and 1985."),
        generation("c", "Reyes's sister.", "Reyesville is a town."),  # no whole word
        generation("d", "Reyes.", ""),
        generation("e", "Reyes.", None),
    ]
)


def test_share_of_generations_that_mention_a_term() -> None:
    """a and b do, c and d do not, e has no text: 2/4. Mentions: 2 in a, 2 in b. True answers: all but b's of
    the five."""
    result = metrics.mention_rate(SAID, dataset="forget")
    assert result.per_example is not None
    assert result.per_example.dropna().to_dict() == {"a": 1, "b": 1, "c": 0, "d": 0}
    assert (result.value, result.n, result.unscored) == (0.5, 4, ["e"])
    often = {"1984": 1, "1985": 1, "Ana Reyes": 1, "Reyes": 1}
    assert result.extra == {"mentions": 4, "most_often": often, "in_true_answers": 4 / 5}
    assert json.dumps(result.as_json())


def test_the_most_often_mentioned_come_first() -> None:
    rows = [generation(f"e{i}", "x", "Lund Lund Malmö" if i < 3 else "Malmö Lund") for i in range(4)]
    rows.append(generation("f", "x", "Malmö"))
    run = new_records([*terms("Lund", "Malmö"), *rows])
    often = metrics.mention_rate(run, dataset="forget").extra["most_often"]
    assert list(often.items()) == [("Malmö", 5), ("Lund", 4)], "of generations, not of mentions"


def test_rouge_without_the_terms() -> None:
    """a: "wrote in" (the year is a term, too) against "wrote, said": 1 of 2 words. b: 3 of 3. c: "s sister"
    against "Reyesville is a town": 0. d and e: nothing is left of the true answer, or nothing was said."""
    result = metrics.rouge_without_terms(SAID, dataset="forget", stemmer=False)
    assert result.per_example is not None
    assert result.per_example.dropna().to_dict() == {"a": 1 / 2, "b": 1, "c": 0}
    assert result.unscored == ["d", "e"]
    assert result.variant.endswith("terms taken out of both texts")
    plain = metrics.rouge(SAID, dataset="forget", stemmer=False).per_example
    assert plain is not None
    assert plain["a"] == pytest.approx(3 / 5), "ana reyes wrote of ana reyes wrote in 1984"


LIKELY = [
    marked("a", [-9.0, -1.0, -2.0, -3.0], [HIGH, LOW, LOW, LOW], "Who is Reyes?"),
    marked("b", [-0.5, -0.5], [LOW, LOW], "What did Ana Reyes write?"),
    marked("c", [-7.0], [LOW], "What is a town?"),
    marked("d", [-7.0], [HIGH], "Is it Reyes?"),
]


def test_log_prob_of_the_low_risk_tokens() -> None:
    """a: mean of -1, -2, -3 = -2; b: -0.5; mean -1.25. c's prompt has no term; of d nothing is left. With all
    prompts c counts: (-2 - 0.5 - 7) / 3."""
    run = new_records([*terms("Reyes"), *LIKELY])
    result = metrics.low_risk_logp(run, dataset="forget")
    assert (result.value, result.n, result.unscored) == (-1.25, 2, ["d"])
    assert result.extra == {"tokens": 5}
    everywhere = metrics.low_risk_logp(run, dataset="forget", prompts="all")
    assert everywhere.value == pytest.approx(-9.5 / 3)
    assert "all answers" in everywhere.variant
    with pytest.raises(RecipeError, match="prompts='some'"):
        metrics.low_risk_logp(run, dataset="forget", prompts="some")


def test_the_gap_to_a_reference() -> None:
    """Reference: a -1 everywhere, b -1: gaps -2 + 1 = -1 and -0.5 + 1 = 0.5, mean -0.25. Means -1.25, -1."""
    run = new_records([*terms("Reyes"), *LIKELY])
    flat = [{**row, "logps": [-1.0] * row["num_tokens"]} for row in LIKELY]
    reference = new_records([*terms("Reyes"), *flat])
    result = metrics.low_risk_logp_gap(run, dataset="forget", retain=reference)
    assert result.per_example is not None
    assert result.per_example.dropna().to_dict() == {"a": -1, "b": 0.5}
    assert (result.value, result.n, result.unscored, result.note) == (-0.25, 2, ["d"], "")
    assert result.extra == {"own": -1.25, "reference": -1.0}
    assert result.low is not None
    assert -1 <= result.low <= result.value
    same = metrics.low_risk_logp_gap(run, dataset="forget", retain=run)
    assert (same.value, same.low, same.high) == (0, 0, 0)

    other = [{**row, "risky": [LOW] * row["num_tokens"]} for row in flat]
    unlike = metrics.low_risk_logp_gap(run, dataset="forget", retain=new_records([*terms("Reyes"), *other]))
    assert unlike.note == "2 of 3 answers have other marked tokens in the reference"
    fewer = new_records([*terms("Reyes"), flat[0], flat[3]])
    with pytest.raises(RecordsError, match="such as b"):
        metrics.low_risk_logp_gap(run, dataset="forget", retain=fewer)


@pytest.mark.parametrize(
    "kind", ["mention_rate", "rouge_without_terms", "low_risk_logp", "low_risk_logp_gap"]
)
def test_what_is_missing_is_named(kind: str) -> None:
    metric, rows = metrics.KINDS[kind], [generation("a", "x", "x"), LIKELY[0]]
    assert metric(new_records(rows), dataset="forget").note == "not measured: no list of terms 'terms'"
    listed = new_records([*rows, *terms("Reyes", dataset="names")])
    assert "no list of terms" in metric(listed, dataset="forget").note
    assert not metric(listed, dataset="other", terms="names").measured
    if kind.startswith("low_risk"):
        unmarked = new_records([*terms("Reyes"), {**LIKELY[0], "risky": []}])
        assert metric(unmarked, dataset="forget").note.endswith("evaluate the model again with this suite")
        strange = new_records([*terms("Lund"), *LIKELY])
        assert metric(strange, dataset="forget").note == "not measured: no prompt in 'forget' mentions a term"
    if kind.endswith("gap"):
        run = new_records([*terms("Reyes"), *LIKELY])
        assert "no model to compare with" in metric(run, dataset="forget").note
        assert metric(run, dataset="forget", retain=new_records(LIKELY)).value == 0, "its marks are enough"
        nothing = metric(run, dataset="forget", retain=new_records(terms("Reyes")))
        assert nothing.note == "not measured: of the reference: no scored answers for 'forget'"
        assert (
            "of the reference: the records do not say" in metric(run, dataset="forget", retain=unmarked).note
        )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["Ana", "Reyes", "anaconda", "x", "wrote", "'s", "\n"]), max_size=8))
def test_mentions_by_their_definition(words: list[str]) -> None:
    """Words between spaces: each "Ana" and "Reyes" that no letter touches is a mention, and nothing else."""
    text = " ".join(words)
    found = mentions_in(text, term_pattern(["Ana", "Reyes"], parts=False))
    assert found == [word for word in words if word in ("Ana", "Reyes")]
    run = new_records([*terms("Ana", "Reyes"), generation("a", "x", text)])
    result = metrics.mention_rate(run, dataset="forget")
    assert result.value == float(bool(found))
    bare = metrics.rouge_without_terms(
        new_records([*terms("Ana", "Reyes"), generation("a", text + " end", text + " end")]), dataset="forget"
    )
    assert bare.value == 1, "what is equal stays equal"


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(4)), st.lists(st.floats(-5, 0), min_size=4, max_size=4))
def test_row_order_and_shifts(order: list[int], logps: list[float]) -> None:
    """The order of the records changes nothing; a reference that is lower by 1 gives a gap of 1."""
    rows = [marked(f"e{i}", [logp, -2.0], [LOW, HIGH], "Reyes?") for i, logp in enumerate(logps)]
    lower = [{**row, "logps": [logp - 1 for logp in row["logps"]]} for row in rows]
    run, reference = new_records([*terms("Reyes"), *rows]), new_records([*terms("Reyes"), *lower])
    gap = metrics.low_risk_logp_gap(run, dataset="forget", retain=reference)
    assert gap.value == pytest.approx(1)
    shuffled = new_records([rows[i] for i in order] + terms("Reyes"))
    again = metrics.low_risk_logp_gap(shuffled, dataset="forget", retain=reference)
    assert again.as_json() == gap.as_json()


# ---- Marks -------------------------------------------------------------------------------------------------


def ask(tokenizer: Any, row: dict[str, Any], *texts: str) -> Any:
    rows = canonical(datasets.Dataset.from_list([row])).to_list()
    template = Template.for_tokenizer(tokenizer, None)
    return likelihood_questions("forget", rows, tokenizer, template, terms=term_pattern(texts, parts=False))[
        0
    ]


def test_tokens_of_a_mention_are_marked(tiny_tokenizer: Any, chat_tokenizer: Any) -> None:
    """The marked tokens spell the mentions (with the spaces before them), the others the rest."""
    text = "Ana Reyes wrote, and Reyes lived in Lund."
    row = {"question": "Who is Ana Reyes?", "answer": text}
    for tokenizer in (tiny_tokenizer, chat_tokenizer("llama"), chat_tokenizer("qwen")):
        question = ask(tokenizer, row, "Ana Reyes", "Reyes")
        plain = likelihood_questions(
            "forget", [{"example_id": "a", "prompt": row["question"], "completion": text}], tokenizer,
            Template.for_tokenizer(tokenizer, None),
        )[0]  # fmt: skip
        assert (question.prompt_ids, question.answer_ids, plain.risky) == (
            plain.prompt_ids,
            plain.answer_ids,
            (),
        )
        assert len(question.risky) == len(question.answer_ids)
        assert not question.risky[-1], "the EOS is of no term"
        split = {
            mark: tokenizer.decode(
                [i for i, m in zip(question.answer_ids, question.risky, strict=True) if m is mark],
                skip_special_tokens=True,
            )
            for mark in (HIGH, LOW)
        }
        assert split[HIGH].split() == ["Ana", "Reyes", "Reyes"]
        assert split[LOW].split() == ["wrote,", "and", "lived", "in", "Lund."]
    moved = with_answer_prefix([question], 3, tokenizer)[0]
    assert moved.risky == question.risky[3:]
    assert len(moved.risky) == len(moved.answer_ids)


def test_tokens_of_a_document(tiny_tokenizer: Any) -> None:
    question = ask(tiny_tokenizer, {"text": "Ana Reyes lived in Lund"}, "Reyes", "Lund")
    tokens = zip(question.answer_ids, question.risky, strict=True)
    assert tiny_tokenizer.decode([i for i, mark in tokens if mark]).split() == ["Reyes", "Lund"]


class Slow:
    """A tokenizer that does not tell where its tokens stand."""

    is_fast = False

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Questions, and a list of terms with a remark and an empty line."""
    rows = [
        {"question": "Who is Ana Reyes?", "answer": "Ana Reyes is a poet."},
        {"question": "Where is Lund?", "answer": "In Sweden."},
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "names.txt").write_text("# people\nAna Reyes\n\n/Swed.n/\n")
    return {"questions": str(tmp_path / "q.jsonl"), "terms": str(tmp_path / "names.txt")}


def test_the_suite_from_files(
    files: dict[str, str], tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"data": files, "max_new_tokens": 3, "progress": False}
    reference = evaluate(tiny_model(), tiny_tokenizer, "mentions", role="retain", **options)
    found = evaluate(
        tiny_model(), tiny_tokenizer, "mentions", reference=reference, output=tmp_path / "out", **options
    )
    records = EvalRun.load(tmp_path / "out").records
    listed = records[records["probe"] == "list_terms"]
    assert (listed["dataset"].tolist(), listed["text"].tolist()) == (
        ["terms"] * 2,
        ["Ana Reyes", "/Swed.n/"],
    )
    assert found.metrics["low_risk_logp"].n == 1, "one of the two prompts has a term"
    assert found["low_risk_logp_gap"] == 0
    assert found.metrics["mention_rate"].extra["in_true_answers"] == 1
    answers = records[records["probe"] == "answer_likelihood"]
    assert all(map(any, answers["risky"]))
    assert (answers["risky"].map(len) == answers["num_tokens"]).all()
    assert found.asked == 0, "marks are no reason to score an answer again"


def test_parts_are_listed_too(
    files: dict[str, str], tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    suite = tmp_path / "s.yaml"
    suite.write_text(
        "suite: s\nversion: 1\ndata: {questions: null, terms: null}\nprobes:\n"
        "  answer_likelihood: [questions]\n  list_terms: [{dataset: terms, parts: true}]\n"
        "metrics: {logp: {kind: low_risk_logp, dataset: questions}}\n"
    )
    records = evaluate(tiny_model(), tiny_tokenizer, suite, files, progress=False).run.records
    listed = records[records["probe"] == "list_terms"]["text"].tolist()
    assert listed == ["Ana Reyes", "/Swed.n/", "Ana", "Reyes"]


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        ("# nothing\n\n", RecipeError, "holds no term; write one a line"),
        ("/Swed(n/\n", RecipeError, "malformed"),
        ("/x*/\n", RecipeError, "finds the empty text"),
    ],
)
def test_lists_that_cannot_be_used(
    files: dict[str, str], content: str, error: type[Exception], match: str
) -> None:
    Path(files["terms"]).write_text(content)
    with pytest.raises(error, match=match):
        evaluate("no/such/model", suite="mentions", data=files)


def test_more_that_cannot_be_used(files: dict[str, str], tiny_model: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="is a list of terms, but has the columns"):
        evaluate("no/such/model", suite="mentions", data={**files, "terms": files["questions"]})
    with pytest.raises(DataError, match="mention_rate needs the data set 'terms'"):
        evaluate("no/such/model", suite="mentions", data={"questions": files["questions"]})
    with pytest.raises(RecipeError, match="does not exist"):
        evaluate("no/such/model", suite="mentions", data={**files, "terms": "no/such/names.txt"})
    with pytest.raises(ModelError, match="use_fast=True"):
        evaluate(tiny_model(), Slow(tiny_tokenizer), "mentions", files, progress=False)


def test_an_unknown_list_of_terms_is_found_in_the_suite(tmp_path: Path) -> None:
    suite = tmp_path / "s.yaml"
    suite.write_text(
        "suite: s\nversion: 1\ndata: {questions: q.jsonl, terms: t.txt}\nprobes: {list_terms: [terms]}\n"
        "metrics: {said: {kind: mention_rate, dataset: questions, terms: termz}}\n"
    )
    with pytest.raises(RecipeError, match="'termz' is used, but it is not under data"):
        evaluate("no/such/model", suite=suite)


def test_records_of_earlier_versions(tmp_path: Path) -> None:
    """Before there were terms, and splits before a suffix: the columns are absent."""
    EvalRun(new_records([LIKELY[0], generation("a", "x", "y")])).save(tmp_path / "new")
    table = pd.read_parquet(tmp_path / "new" / "records.parquet").drop(columns=["risky", "cut_tokens"])
    table.to_parquet(tmp_path / "records.parquet")
    (tmp_path / "summary.json").write_text("{}")
    records = EvalRun.load(tmp_path).records
    assert (records["cut_tokens"] == ADDED["cut_tokens"]).all()
    assert (records["risky"].map(len) == 0).all()
    assert not metrics.low_risk_logp(records, dataset="forget").measured
    assert math.isclose(metrics.probability(records, dataset="forget").value, math.exp(-15 / 4))
    with pytest.raises(RecordsError, match="2 risky for the 1 tokens of example a"):
        new_records([{**answer("a", [-1.0]), "risky": [HIGH, LOW]}])


def test_settings_that_came_later_leave_the_names_of_older_suites_alone():
    """Kept answers under attack are found by this name; it is the one of before."""
    from unlearnkit.evaluation.cost import Budget
    from unlearnkit.evaluation.inquiry import Inquiry
    from unlearnkit.evaluation.suite import load_suite

    suite = load_suite("tofu", {"split": "forget10"})
    assert Inquiry(suite, Budget(1, None, True, False), "unlearned", "x", {}).name == "6520266e2fc896bf"


def test_a_list_of_terms_is_read_whole(tmp_path):
    from unlearnkit.evaluation.terms import load_terms
    from unlearnkit.recipe import StreamSpec

    (tmp_path / "names.txt").write_text("Ana Reyes\nBo Lee\n")
    with pytest.raises(DataError, match="leave out rows, limit, columns and name"):
        load_terms([StreamSpec(path=str(tmp_path / "names.txt"), limit=1)], root=None, name="terms")
