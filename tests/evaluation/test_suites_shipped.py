"""Every shipped suite runs on a tiny model, on files as its users have them, and says what it lacks."""

from __future__ import annotations

import json

import pytest

from unlearnkit import shipped
from unlearnkit.errors import DataError, RecipeError
from unlearnkit.evaluation.records import EvalRun
from unlearnkit.evaluation.runner import evaluate, load_rows
from unlearnkit.evaluation.suite import load_suite

SUITES = [name for name in shipped.available("eval/suites") if name != "capability"]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def muse(tmp_path, fictional_rows):
    """MUSE's layout of folders on disk, with a few texts and questions."""
    root = tmp_path / "MUSE"
    rows = fictional_rows("full")
    text = [{"text": f"{r['question']} {r['answer']}"} for r in rows]
    questions = [{"question": r["question"], "answer": r["answer"]} for r in rows]
    parts = {
        "verbmem/forget": [{"prompt": r["question"], "gt": " " + r["answer"]} for r in rows[:2]],
        "knowmem/forget_qa": questions[:2], "knowmem/forget_qa_icl": questions[30:32],
        "knowmem/retain_qa": questions[10:12], "knowmem/retain_qa_icl": questions[32:33],
        "privleak/forget": text[:4], "privleak/retain": text[10:14], "privleak/holdout": text[20:24],
        "raw/forget": text[:3], "scal/forget_2": text[3:5],
    }  # fmt: skip
    for name, content in parts.items():
        write(root / f"{name}.jsonl", content)
    return str(root)


@pytest.fixture
def data(name, muse, tmp_path, fictional_rows):
    if name == "muse":
        return {"root": muse}
    if name in ("tofu", "tofu_full"):
        sets = ("forget10", "retain", "real_authors", "world_facts")
        splits = {one.removesuffix("10"): f"{one}_perturbed" for one in sets} | {"holdout": "holdout10"}
        wanted = load_suite(name).data
        return {
            key: write(tmp_path / f"{key}.jsonl", fictional_rows(split)[:2])
            for key, split in splits.items()
            if key in wanted
        }
    forget, holdout = fictional_rows("forget10_perturbed")[:2], fictional_rows("holdout10")[:2]
    terms = [{"text": row["answer"].split()[0]} for row in forget]
    sets = {
        "questions": forget,
        "terms": [*terms, {"text": f"/{forget[0]['question'][:5]}/"}],
        "forget": forget,
        "holdout": holdout,
        "retain": fictional_rows("retain_perturbed")[:2],
        "control": holdout,
    }
    return {
        key: write(tmp_path / f"{key}.jsonl", rows)
        for key, rows in sets.items()
        if key in load_suite(name).data
    }


@pytest.mark.parametrize("name", SUITES)
def test_a_shipped_suite_runs(name, data, tiny_model, tiny_tokenizer, tmp_path):
    options = {"data": data, "max_new_tokens": 3, "progress": False, "cache": False}
    retain = evaluate(tiny_model(), tiny_tokenizer, name, role="retain", **options)
    found = evaluate(
        tiny_model(), tiny_tokenizer, name, reference=retain, target=tiny_model(), output=tmp_path / "out",
        **options,
    )  # fmt: skip
    absent = set(found.summary["absent"])
    unmeasured = {key for key, metric in found.metrics.items() if not metric.measured}
    # Two examples can be too few for a comparison of AUCs, and three tokens for pairs of words.
    may = {"privleak", "forget_distinct_2"}
    assert {key for key in unmeasured if load_suite(name, data).metrics[key].dataset not in absent} <= may
    assert all(metric.note for metric in found.metrics.values() if not metric.measured)
    suite = load_suite(name)
    assert set(found.run.records["suite"]) == {f"{name}/{suite.version}"}
    again = EvalRun.load(tmp_path / "out")
    assert set(again.meta["metrics"]) == set(suite.metrics)


@pytest.mark.parametrize("name", [*SUITES, "capability"])
def test_a_shipped_suite_explains_itself(name):
    suite = load_suite(name)
    assert suite.version >= 1
    assert 20 < len(suite.description) < 120
    assert all(spec.title for spec in suite.metrics.values())
    known = {"forget", "utility", "retain", "memorization", "membership", "leakage", "fluency", "capability",
             "indication", "mentions", "understanding", "other"}  # fmt: skip
    assert {spec.group for spec in suite.metrics.values()} <= known


def test_muse_reads_its_folders(muse, tiny_model, tiny_tokenizer):
    rows, absent = load_rows(load_suite("muse", {"root": muse}))
    assert len(rows["verbmem"]) == 2
    assert len(rows["knowmem_retain_shots"]) == 1
    assert set(rows["verbmem"][0]) == {"prompt", "completion", "example_id"}
    assert {"scal_2", "raw_forget"} <= set(rows)
    assert {"scal_1", "sust_4", "raw_retain"} <= set(absent)
    options = {"data": {"root": muse}, "max_new_tokens": 3, "progress": False, "cache": False}
    records = evaluate(tiny_model(), tiny_tokenizer, "muse", **options).run.records
    verbmem = records[(records["dataset"] == "verbmem")].iloc[0]
    assert not verbmem["prompt"].startswith("Question:"), "texts are continued as they are"
    assert len(verbmem["reference_tokens"]) == 3, "the truth is as long as what may be generated"
    shown = records[records["dataset"] == "knowmem_retain"].iloc[0]["prompt"]
    assert shown.count("?") == 2, "the shot's question and the question itself"


def test_muse_on_the_hub_has_a_name_for_each_corpus():
    assert load_suite("muse").root == "muse-bench/MUSE-News"
    assert load_suite("muse", {"split": "Books"}).root == "muse-bench/MUSE-Books"
    with pytest.raises(RecipeError, match="there is no split 'books'; did you mean 'Books'"):
        load_suite("muse", {"split": "books"})


def test_the_holdout_follows_the_split():
    suite = load_suite("tofu_full", {"split": "forget01"})
    assert [source.name for source in suite.data["holdout"]] == ["holdout01"]
    assert suite.optional == {"holdout"}


def test_what_is_required_is_refused_before_a_model_is_loaded(tmp_path, fictional_rows):
    forget = write(tmp_path / "f.jsonl", fictional_rows("forget10")[:2])
    with pytest.raises(
        DataError, match="'holdout', which is absent; add --data holdout=FILE, or in a recipe"
    ):
        evaluate("no/such/model", suite="membership", data={"forget": forget})
    suite = tmp_path / "strict.yaml"
    suite.write_text(
        "suite: strict\nversion: 1\ndata: {forget: null}\nprobes: {answer_likelihood: [forget]}\nmetrics:\n"
        "  quality: {kind: forget_quality, dataset: forget, required: true}\n"
    )
    with pytest.raises(DataError) as caught:
        evaluate("no/such/model", suite=suite, data={"forget": forget})
    assert "perturbed_answer" in str(caught.value)
    assert "--reference PATH" in str(caught.value)


def test_an_optional_set_that_is_absent_is_named_in_the_metric(
    tmp_path, tiny_model, tiny_tokenizer, fictional_rows
):
    for split in (
        "forget10_perturbed",
        "retain_perturbed",
        "real_authors_perturbed",
        "world_facts_perturbed",
    ):
        write(tmp_path / f"{split}.jsonl", fictional_rows(split)[:2])
    found = evaluate(
        tiny_model(), tiny_tokenizer, "tofu_full", {"root": str(tmp_path)}, max_new_tokens=2, progress=False
    )
    assert found.summary["absent"].keys() == {"holdout"}
    note = found.metrics["membership_loss"].note
    assert "not measured" in note
    assert "has no file for 'holdout10'" in note
    assert "gradient_norm" not in set(found.run.records["probe"]), "no gradients where nothing is compared"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("answer_likelihod: [forget]", "in probes; did you mean 'answer_likelihood'"),
        ("generate_answer: [{dataset: forget, samples: 3}]", "unknown key 'samples' in probes.gen"),
        ("sample_answer: [{dataset: forget, smaples: 3}]", "did you mean 'samples'"),
        ("sample_answer: [{dataset: forget, samples: 0}]", "samples must be at least 1"),
        ("generate_answer: forget", "probes.generate_answer must be a list, found 'forget'"),
        ("generate_answer: [{dataset: forget, shots: froget}]", "'froget' is used, but it is not under data"),
        ("continue_text: [{prefix_tokens: 5}]", "dataset is missing"),
    ],
)  # fmt: skip
def test_mistakes_in_what_is_asked(tmp_path, text, match):
    path = tmp_path / "s.yaml"
    path.write_text(f"suite: s\nversion: 1\ndata: {{forget: f.jsonl}}\nprobes:\n  {text}\nmetrics: {{}}\n")
    with pytest.raises(RecipeError, match=match):
        load_suite(path)


def test_what_is_said_is_judged_as_it_was_said(tmp_path, tiny_model, tiny_tokenizer, fictional_rows):
    """An answer cut at the bound has no EOS to judge; one that ended has; an empty one is unscored."""
    forget = write(tmp_path / "f.jsonl", fictional_rows("forget10")[:4])
    suite = tmp_path / "judge.yaml"
    suite.write_text(
        "suite: judge\nversion: 1\ndata: {forget: null}\n"
        "probes: {generate_answer: [forget], judged_likelihood: [forget], max_new_tokens: 6}\n"
        "metrics: {said: {kind: judged_logp, dataset: forget}}\n"
    )
    options = {"data": {"forget": forget}, "progress": False, "cache": False}
    model = tiny_model()
    free = evaluate(model, tiny_tokenizer, suite, target=tiny_model(), **options).run.records
    said = free.query("probe == 'judged_likelihood'")
    assert said["num_tokens"].tolist() == [6] * 4
    assert not said["ends_with_eos"].any()
    spoken = free.query("probe == 'generate_answer'")["tokens"].tolist()
    model.generation_config.eos_token_id = [int(spoken[0][0]), int(spoken[1][2])]
    ended = evaluate(model, tiny_tokenizer, suite, target=tiny_model(), **options)
    table = ended.run.records.query("probe == 'judged_likelihood'").set_index("example_id")
    answers = ended.run.records.query("probe == 'generate_answer'").set_index("example_id")
    for name, row in table.iterrows():
        tokens, ends = len(answers.loc[name, "tokens"]), answers.loc[name, "num_tokens"]
        assert row["num_tokens"] == (0 if tokens == 0 else ends), name
    assert 0 in table["num_tokens"].tolist()
    empty = [name for name, row in table.iterrows() if row["num_tokens"] == 0]
    assert ended.metrics["said"].unscored == sorted(empty)
