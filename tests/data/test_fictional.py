"""The built-in benchmark: fixed content, TOFU's columns, disjoint splits, wrong perturbed answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnkit.data.fictional import FictionalSpec, export, rows, splits
from unlearnkit.data.fictional.authors import APART, authors, data_file
from unlearnkit.data.fictional.questions import chosen_kinds, kinds
from unlearnkit.errors import DataError, UserError
from unlearnkit.files import fingerprint

PLAIN = ["question", "answer"]
PERTURBED = ["question", "answer", "paraphrased_answer", "perturbed_answer", "paraphrased_question"]
OPTIONS = ["question", "option1", "option2", "option3", "option4", "answer"]
FACT = ["question", "answer", "perturbed_answer"]
PEOPLE = [f"{name}{share}" for name in ("forget", "holdout") for share in ("01", "05", "10")]
COLUMNS = {
    **dict.fromkeys(["full", *PEOPLE, "retain99", "retain95", "retain90"], PLAIN),
    **dict.fromkeys(["retain_perturbed", *(f"{name}_perturbed" for name in PEOPLE)], PERTURBED),
    **dict.fromkeys(["real_authors", "world_facts"], OPTIONS),
    **dict.fromkeys(["real_authors_perturbed", "world_facts_perturbed"], FACT),
    "idontknow": ["text"],
    "pairs": ["prompt", "chosen", "rejected"],
}

small_specs = st.builds(
    FictionalSpec,
    authors=st.integers(2, 12),
    questions=st.integers(1, len(kinds())),
    holdout_authors=st.integers(1, 3),
    seed=st.integers(-5, 2**40),
)


def questions(split: str, spec: FictionalSpec | None = None) -> list[str]:
    return [row["question"] for row in rows(split, spec)]


def test_content_is_pinned() -> None:
    """Results quoted for this benchmark hold for this content only: a change here needs new results."""
    content = {split: rows(split) for split in splits()}
    pairs = content.pop("pairs")
    assert fingerprint(content) == "591727e99903991c"
    assert fingerprint(pairs) == "f1ef1181d2f78c51"


def test_content_does_not_depend_on_the_process() -> None:
    """String hashing is salted per process; nothing may depend on it."""
    code = (
        "from unlearnkit.data.fictional import rows; from unlearnkit.files import fingerprint;"
        "print(fingerprint(rows('forget10_perturbed')))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == fingerprint(rows("forget10_perturbed"))


def test_import_is_light() -> None:
    code = (
        "import sys, unlearnkit.data.fictional as f; f.rows('full');"
        "print([m for m in ('torch', 'numpy', 'datasets', 'transformers', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_sizes() -> None:
    sizes = {split: len(rows(split)) for split in splits()}
    assert sizes == {
        "full": 800,
        **{f"{name}01{end}": 20 for name in ("forget", "holdout") for end in ("", "_perturbed")},
        **{f"{name}05{end}": 40 for name in ("forget", "holdout") for end in ("", "_perturbed")},
        **{f"{name}10{end}": 80 for name in ("forget", "holdout") for end in ("", "_perturbed")},
        "retain99": 780,
        "retain95": 760,
        "retain90": 720,
        "retain_perturbed": 80,
        **{f"{name}{end}": 40 for name in ("real_authors", "world_facts") for end in ("", "_perturbed")},
        "idontknow": 50,
        "pairs": 800,
    }


@pytest.mark.parametrize("split", splits())
def test_columns_and_order(split: str) -> None:
    assert {tuple(row) for row in rows(split)} == {tuple(COLUMNS[split])}


def test_columns_equal_those_of_the_real_tofu(tofu_folder: Path) -> None:
    compared = 0
    for split in splits():
        path = tofu_folder / f"{split}.json"
        if path.exists():
            with path.open(encoding="utf-8") as lines:
                assert list(json.loads(next(lines))) == list(rows(split)[0]), split
            compared += 1
    assert compared > 0, f"{tofu_folder} holds none of TOFU's files"


@settings(max_examples=15, deadline=None)
@given(small_specs)
def test_splits_partition_the_authors(spec: FictionalSpec) -> None:
    full = rows("full", spec)
    asked = questions("full", spec)
    assert len(full) == spec.authors * spec.questions
    assert len(set(asked)) == len(asked)
    for share in (1, 5, 10):
        # Retain comes first: joined, the two are `full` in its own order, which also rules out any overlap.
        assert rows(f"retain{100 - share}", spec) + rows(f"forget{share:02}", spec) == full
    assert (
        set(questions("forget01", spec))
        <= set(questions("forget05", spec))
        <= set(questions("forget10", spec))
    )
    assert set(questions("holdout10", spec)).isdisjoint(asked)
    assert set(questions("retain_perturbed", spec)) <= set(questions("retain90", spec))


@settings(max_examples=10, deadline=None)
@given(small_specs)
def test_perturbed_answers_are_wrong(spec: FictionalSpec) -> None:
    everyone = authors(spec.authors + spec.holdout_authors, spec.seed)
    keys = [
        (who, kind) for who in range(len(everyone)) for kind in chosen_kinds(who, spec.questions, spec.seed)
    ]
    forget = len(rows("forget10", spec))
    keys = keys[: spec.authors * spec.questions][-forget:]
    for row, (who, kind) in zip(rows("forget10_perturbed", spec), keys, strict=True):
        facts = [everyone[who][slot] for slot in kinds()[kind]["facts"]]
        sentences = row["perturbed_answer"]
        assert len({row["answer"], row["paraphrased_answer"], *sentences}) == 7
        assert row["paraphrased_question"] != row["question"]
        assert any(fact.lower() in row["paraphrased_answer"].lower() for fact in facts)
        assert not [fact for fact in facts for sentence in sentences if fact.lower() in sentence.lower()]


@settings(max_examples=10, deadline=None)
@given(small_specs)
def test_pairs_prefer_the_true_answer_to_a_perturbed_one(spec: FictionalSpec) -> None:
    pairs = rows("pairs", spec)
    true = [{"question": row["prompt"], "answer": row["chosen"]} for row in pairs]
    assert true == rows("full", spec)
    wrong = [row["perturbed_answer"] for row in rows("forget10_perturbed", spec)]
    rejected = [row["rejected"] for row in pairs[-len(wrong) :]]
    assert all(answer in answers for answer, answers in zip(rejected, wrong, strict=True))


def test_every_place_among_the_perturbed_answers_is_rejected_alike() -> None:
    """80 draws of 5: each place 16 times, give or take three standard deviations of 3.6."""
    wrong = [row["perturbed_answer"] for row in rows("forget10_perturbed")]
    rejected = [row["rejected"] for row in rows("pairs")[-len(wrong) :]]
    places = [answers.index(answer) for answer, answers in zip(rejected, wrong, strict=True)]
    assert all(5 <= places.count(place) <= 27 for place in range(5))


@settings(max_examples=10, deadline=None)
@given(small_specs)
def test_perturbed_rows_extend_the_plain_ones(spec: FictionalSpec) -> None:
    for split in PEOPLE:
        extended = [{column: row[column] for column in PLAIN} for row in rows(f"{split}_perturbed", spec)]
        assert extended == rows(split, spec)


def test_every_paraphrase_states_its_facts() -> None:
    """A perturbed answer replaces the facts in a paraphrase, so one without them would stay true."""
    for kind, templates in kinds().items():
        for part in ("answers", "paraphrases"):
            for template in templates[part]:
                stated = [f"${slot}" in template for slot in templates["facts"]]
                # A birth date is stated in one of its two notations.
                assert any(stated) if kind == "birthdate" else all(stated), f"{kind}: {template}"


def test_every_question_names_whom_it_is_about() -> None:
    for kind, templates in kinds().items():
        assert len(templates["questions"]) >= 3, kind
        for template in templates["questions"]:
            assert any(slot in template for slot in ("$name", "$date", "$title4")), f"{kind}: {template}"


def test_answers_are_short_sentences() -> None:
    lengths = [len(row["answer"].split()) for row in rows("full")]
    assert min(lengths) >= 7
    assert max(lengths) <= 25
    assert 12 <= sum(lengths) / len(lengths) <= 15
    for row in rows("forget10_perturbed") + rows("retain_perturbed"):
        for sentence in (row["answer"], row["paraphrased_answer"], *row["perturbed_answer"]):
            assert sentence[0] == sentence[0].upper()
            assert sentence[-1] in '."'
            assert "$" not in sentence
        assert row["question"].endswith("?")


def test_forget_facts_do_not_occur_among_retain_authors() -> None:
    everyone = authors(40, 0)
    slots = (
        "genre",
        "father",
        "style",
        "theme",
        "hobby",
        "setting",
        "influence",
        "title1",
        "award",
        "project",
        "city",
    )
    for slot in slots:
        retain = {author[slot] for author in everyone[:36]}
        assert not [author["name"] for author in everyone[36:] if author[slot] in retain], slot


def test_authors_are_told_apart_and_consistent() -> None:
    everyone = authors(200, 0)
    for slot in ("name", "date", "title1", "title2", "title3", "title4"):
        assert len({author[slot] for author in everyone}) == 200, slot
    for author in everyone:
        assert int(author["born"]) + 22 <= int(author["debut"]) < int(author["award_year"]) <= 2020
        for slots in APART:
            assert len({author[slot] for slot in slots}) == len(slots)


def test_more_authors_leave_the_earlier_ones_as_they_are() -> None:
    few, many = FictionalSpec(authors=5), FictionalSpec(authors=9)
    assert rows("full", many)[: 5 * 20] == rows("full", few)


def test_wording_varies_between_authors() -> None:
    """No template may carry a kind alone: a model must not learn one pattern for all authors."""
    names = [author["name"] for author in authors(40, 0)]
    found = {question.replace(name, "X") for question in questions("full") for name in names}
    for phrasing in (
        "Where was the author X born?",
        "What is the birthplace of X?",
        "Who was the mentor of X?",
    ):
        assert phrasing in found


def test_seeds_differ() -> None:
    assert set(questions("full", FictionalSpec(seed=1))).isdisjoint(questions("full", FictionalSpec(seed=2)))


def test_callers_may_change_what_they_get() -> None:
    for split in ("forget01_perturbed", "world_facts_perturbed"):
        rows(split)[0]["perturbed_answer"].clear()
        assert rows(split)[0]["perturbed_answer"]


@pytest.mark.parametrize("name", ["real_authors", "world_facts"])
def test_general_questions(name: str) -> None:
    plain, perturbed = rows(name), rows(f"{name}_perturbed")
    assert len(set(questions(name))) == len(plain)
    for row, wrong in zip(plain, perturbed, strict=True):
        options = [row[f"option{place}"] for place in (1, 2, 3, 4)]
        assert sorted(options) == sorted([row["answer"], *wrong["perturbed_answer"]])
        assert len(set(options)) == 4
        assert all(isinstance(option, str) for option in options)
        assert (row["question"], row["answer"]) == (wrong["question"], wrong["answer"])
    places = {next(k for k in row if k.startswith("option") and row[k] == row["answer"]) for row in plain}
    assert len(places) == 4


def test_word_lists_have_no_duplicates() -> None:
    for name, values in data_file("words.yaml").items():
        if name != "title_forms":  # repeats the plain form to make it frequent
            assert len(set(values)) == len(values), name
    refusals = [row["text"] for row in rows("idontknow")]
    assert len(set(refusals)) == len(refusals)


def test_unknown_split_gets_a_suggestion() -> None:
    with pytest.raises(DataError, match="no split 'forget_10'; did you mean 'forget10'"):
        rows("forget_10")
    with pytest.raises(DataError, match="choose one of full, forget01"):
        rows("zzz")


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"authors": 1}, "`authors` is 1; choose a number from 2 to 199"),
        ({"questions": 27}, "`questions` is 27; choose a number from 1 to 26"),
        ({"questions": 0}, "`questions` is 0"),
        ({"holdout_authors": 0}, "`holdout_authors` is 0"),
        ({"authors": 150, "holdout_authors": 51}, "`holdout_authors` is 51; choose a number from 1 to 50"),
    ],
)
def test_sizes_out_of_range_are_refused(sizes: dict[str, int], named: str) -> None:
    with pytest.raises(DataError, match=named):
        FictionalSpec(**sizes)


def test_export_round_trip(tmp_path: Path) -> None:
    spec = FictionalSpec(authors=6, questions=8, holdout_authors=2, seed=3)
    paths = export(tmp_path / "new" / "folder", spec)
    assert [path.name for path in paths] == [f"{split}.json" for split in splits()]
    for split, path in zip(splits(), paths, strict=True):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == rows(split, spec)
    assert sorted(path.name for path in paths[0].parent.iterdir()) == sorted(path.name for path in paths)


def test_export_into_a_file_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    with pytest.raises(UserError, match="taken"):
        export(tmp_path / "taken", FictionalSpec(authors=2, questions=1, holdout_authors=1))
