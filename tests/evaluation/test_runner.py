"""evaluate(): each pair once, results kept by content, a kill loses nothing, the unmeasured is named."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from unlearnkit.errors import DataError, ModelError, RecordsError
from unlearnkit.evaluation import probes
from unlearnkit.evaluation.records import EvalRun
from unlearnkit.evaluation.runner import evaluate
from unlearnkit.recipe import TemplateSpec

SETS = {
    "forget": "forget10",
    "retain": "retain_perturbed",
    "real_authors": "real_authors",
    "world_facts": "world_facts",
}


@pytest.fixture
def data(tmp_path, fictional_rows):
    """A small copy of the benchmark on disk, as the `data` of an evaluation: 4 examples a set."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name, split in SETS.items():
        split = split if split.endswith("_perturbed") else f"{split}_perturbed"
        rows = fictional_rows(split)[:4]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return {name: str(folder / f"{name}.jsonl") for name in SETS}


@pytest.fixture
def run(tiny_model, tiny_tokenizer, data):
    """`run(**options)`: the TOFU suite on the small model and data."""

    def call(model=None, **options):
        options = {"suite": "tofu", "data": data, "max_new_tokens": 4, "progress": False, **options}
        return evaluate(tiny_model() if model is None else model, tiny_tokenizer, **options)

    return call


@pytest.fixture
def asked(monkeypatch):
    """What the probes were asked, in all evaluations of a test: {"scored": [...], "spoken": [...]}."""
    seen = {"scored": [], "spoken": []}
    score, generate = probes.score_answers, probes.generate_answers

    def count_scored(model, questions, **options):
        seen["scored"] += [q.pair for q in questions]
        return score(model, questions, **options)

    def count_spoken(model, tokenizer, questions, **options):
        seen["spoken"] += [q.prompt_name for q in questions]
        return generate(model, tokenizer, questions, **options)

    monkeypatch.setattr(probes, "score_answers", count_scored)
    monkeypatch.setattr(probes, "generate_answers", count_spoken)
    return seen


@pytest.fixture
def counted(monkeypatch):
    """`counted(model)`: a list of the rows of every forward pass that used no cache (the scoring pass)."""

    def count(model):
        forward, rows = type(model).forward, []

        @functools.wraps(forward)
        def note(self, *args, **kwargs):
            if kwargs.get("use_cache") is False:
                rows.append(kwargs["input_ids"].shape[0])
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(type(model), "forward", note)
        return model, rows

    return count


def lora(model, **options):
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, **options)
        return get_peft_model(model, config).eval()


def same(one, two):
    pd.testing.assert_frame_equal(one.run.records, two.run.records)


def test_each_pair_is_scored_once_and_never_again(run, tiny_model, asked, counted):
    model, rows = counted(tiny_model())
    first = run(model)
    likelihood = first.run.records.query("probe == 'answer_likelihood'")
    assert len(likelihood) > 60
    assert (
        sum(rows)
        == len(asked["scored"])
        == len(set(asked["scored"]))
        == first.summary["cost"]["scored_pairs"]
    )
    assert len(asked["spoken"]) == first.summary["cost"]["generated"] == 16
    again = run(model)
    same(first, again)
    assert sum(rows) == len(asked["scored"]), "no forward pass on the second call"
    assert again.summary["cost"]["scored_pairs"] == again.summary["cost"]["generated"] == 0
    assert again.summary["fingerprint"] == first.summary["fingerprint"]
    assert {n: m.as_json() for n, m in again.metrics.items()} == {
        n: m.as_json() for n, m in first.metrics.items()
    }


def test_a_pair_that_two_sets_share_is_scored_once(run, data, asked):
    both = run(data={**data, "retain": data["forget"]})
    records = both.run.records
    assert len(asked["scored"]) == len(set(asked["scored"]))
    forget, retain = (records[records["dataset"] == s].drop(columns="dataset") for s in ("forget", "retain"))
    pd.testing.assert_frame_equal(forget.reset_index(drop=True), retain.reset_index(drop=True))


def test_results_do_not_depend_on_batches_or_order(run, data, tmp_path):
    base = run(cache=False)
    small = run(cache=False, batch_tokens=1)
    shuffled = {}
    for name, path in data.items():
        lines = Path(path).read_text().splitlines()
        shuffled[name] = str(tmp_path / f"{name}-shuffled.jsonl")
        Path(shuffled[name]).write_text("\n".join(lines[::-1]) + "\n")
    key = ["probe", "dataset", "example_id", "field", "index"]
    frames = [
        e.run.records.sort_values(key, ignore_index=True)
        for e in (base, small, run(cache=False, data=shuffled))
    ]
    for other in frames[1:]:
        pd.testing.assert_frame_equal(frames[0][[*key, "text", "hits"]], other[[*key, "text", "hits"]])
        for column in ("logps", "means", "variances"):
            for a, b in zip(frames[0][column], other[column], strict=True):
                torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-5, atol=1e-5)
    assert base["model_utility"] == pytest.approx(small["model_utility"], rel=1e-5)


def test_other_weights_adapters_templates_and_settings_are_asked_anew(run, tiny_model, asked):
    changed = tiny_model()
    with torch.no_grad():
        changed.model.norm.weight[0] += 1e-3
    stopping = tiny_model()
    stopping.generation_config.eos_token_id = [1, 5]
    penalised = tiny_model()
    penalised.generation_config.repetition_penalty = 2.0
    everything = [
        ("the model", {}, True, True),
        ("weights", {"model": changed}, True, True),
        ("an adapter", {"model": lora(tiny_model(), lora_alpha=8)}, True, True),
        ("its scale", {"model": lora(tiny_model(), lora_alpha=16)}, True, True),
        ("precision", {"model": tiny_model().bfloat16()}, True, True),
        ("template", {"template": TemplateSpec(answer_start="A: ")}, True, True),
        ("length", {"max_new_tokens": 5}, False, True),
        ("stop tokens", {"model": stopping}, False, True),
        ("penalty", {"model": penalised}, False, True),
        ("batches", {"batch_tokens": 77}, False, False),
    ]
    for what, options, scored, spoken in everything:
        before = {kind: len(names) for kind, names in asked.items()}
        run(**options)
        assert (len(asked["scored"]) > before["scored"]) == scored, what
        assert (len(asked["spoken"]) > before["spoken"]) == spoken, what


def test_an_evaluation_that_breaks_keeps_what_it_has(run, tiny_model, asked, monkeypatch):
    whole = run(cache=False)
    asked["scored"].clear(), asked["spoken"].clear()
    generate = probes.generate_answers

    def breaks(*args, **options):
        for number, results in enumerate(generate(*args, **options)):
            if number == 5:
                raise RuntimeError("out of memory")
            yield results

    model = tiny_model().train()
    with monkeypatch.context() as patch:
        patch.setattr(probes, "generate_answers", breaks)
        with pytest.raises(RuntimeError, match="out of memory"):
            run(model, batch_tokens=60)
    assert model.training, "the model is handed back as it came"
    pairs = len(asked["scored"])
    asked["spoken"].clear()
    resumed = run(batch_tokens=60)
    assert len(asked["scored"]) == pairs, "no pair again"
    assert len(asked["spoken"]) == 16 - 5
    pd.testing.assert_frame_equal(whole.run.records[["text", "hits"]], resumed.run.records[["text", "hits"]])


KILLED = """
import os, signal, sys
from unlearnkit.evaluation import probes, runner, store
store._FLUSH_EVERY = 1
real, done = probes.score_answers, []
def dies(*args, **options):
    for results in real(*args, **options):
        yield results
        done.append(results)
        if len(done) == 6:
            os.kill(os.getpid(), signal.SIGKILL)
probes.score_answers = dies
import json
options = {"batch_tokens": 300, "max_new_tokens": 4, "progress": False}
runner.evaluate(sys.argv[1], None, "tofu", json.loads(sys.argv[2]), **options)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_evaluation_goes_on(run, tiny_model, tiny_tokenizer, data, tmp_path, asked):
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), json.dumps(data)], env=environment, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    whole = run(cache=False, batch_tokens=300)
    everything = set(asked["scored"])
    asked["scored"].clear()
    resumed = run(str(folder), batch_tokens=300)
    assert 0 < len(asked["scored"]) < len(everything)
    assert set(asked["scored"]) < everything
    assert [list(x) for x in resumed.run.records["hits"]] == [list(x) for x in whole.run.records["hits"]]
    assert resumed.run.records["text"].tolist() == whole.run.records["text"].tolist()


def test_a_damaged_cache_is_computed_anew(run, asked):
    first = run()
    parts = sorted(Path(os.environ["UNLEARNKIT_CACHE"]).rglob("*.parquet"))
    assert len(parts) == 2
    for part in parts:
        part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    count = len(asked["scored"])
    same(first, run())
    assert len(asked["scored"]) == 2 * count


def test_records_and_summary_on_disk(run, tmp_path):
    result = run(output=tmp_path / "eval", role="target", label="Target")
    saved = EvalRun.load(tmp_path / "eval")
    assert len(saved.records) == len(result.run.records)
    summary = json.loads((tmp_path / "eval" / "summary.json").read_text())
    assert (summary["role"], summary["label"], summary["split"], summary["suite"]) == (
        "target",
        "Target",
        "forget10",
        "tofu",
    )
    assert summary["metrics"]["forget_quality"]["value"] is None
    assert "no retain model" in summary["metrics"]["forget_quality"]["note"]
    assert summary["metrics"]["forget_rouge"] | {"group": "forget"} == summary["metrics"]["forget_rouge"]
    assert set(summary["fingerprint"]) == {"model", "data", "tokenizer", "template"}
    assert summary["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_a_reference_may_be_a_result_a_folder_or_a_model(run, tiny_model, tiny_tokenizer, tmp_path):
    other = tiny_model()
    with torch.no_grad():
        other.lm_head.weight.mul_(1.5)
    result = run(other, output=tmp_path / "retain", role="retain", label="Retain")
    other.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    given = [result, tmp_path / "retain", str(tmp_path / "retain"), other, str(tmp_path / "model")]
    values = [run(reference=reference) for reference in given]
    assert len({v["forget_quality"] for v in values}) == 1
    assert 0 <= values[0]["forget_quality"] <= 1
    assert values[1].summary["reference"] == {
        "label": "Retain",
        "fingerprint": result.summary["fingerprint"]["model"],
    }
    assert values[4].summary["reference"]["fingerprint"] == result.summary["fingerprint"]["model"]


def test_a_broken_reference_is_refused_before_the_model_runs(run, asked, tmp_path):
    (tmp_path / "retain").mkdir()
    (tmp_path / "retain" / "records.parquet").write_bytes(b"PAR1")
    with pytest.raises(RecordsError, match=r"not complete|cannot be read"):
        run(reference=tmp_path / "retain")
    assert asked["scored"] == []


def test_data_that_lack_something(run, tmp_path):
    (tmp_path / "mine.csv").write_text("question,answer\nWho is Ana?,A writer.\nWho is Bo?,A baker.\n")
    result = run(suite="forget", data={"forget": str(tmp_path / "mine.csv")})
    notes = {name: metric.note for name, metric in result.metrics.items() if metric.value != metric.value}
    assert set(notes) == {
        "forget_quality", "forget_truth_ratio", "retain_probability", "retain_rouge", "retain_truth_ratio",
        "forget_judged_logp", "membership_loss", "membership_min_k", "forget_paraphrase_preference",
    }  # fmt: skip
    assert all(note.startswith("not measured: ") for note in notes.values())
    assert 0 < result["forget_probability"] < 1
    assert result.metrics["forget_rouge"].n == 2


def test_documents(run, tmp_path):
    (tmp_path / "book.txt").write_text("Ana lived in Lund and wrote elegies.\n\nBo baked bread in Oslo.\n")
    long = "Ana wrote elegies. " * 200
    (tmp_path / "long.txt").write_text(f"Short one here.\n{long}\n")
    result = run(
        suite="forget", data={"forget": str(tmp_path / "book.txt"), "retain": str(tmp_path / "long.txt")}
    )
    records = result.run.records
    assert set(records.query("dataset == 'forget'")["field"]) == {"answer", "generation", "sample"}
    assert not records["ends_with_eos"].any()
    assert result.metrics["forget_probability"].n == 2
    unscored = records.query("dataset == 'retain' and num_tokens == 0")
    assert len(unscored) == 2, "longer than the model's 256 positions: not scored and not continued"
    assert result.metrics["retain_probability"].unscored == unscored["example_id"].tolist()[:1]
    assert result.metrics["retain_rouge"].unscored == unscored["example_id"].tolist()[:1]


def test_a_chat_model_is_asked_through_its_template(tiny_model, chat_tokenizer, data):
    model, tokenizer = tiny_model(), chat_tokenizer("qwen")
    result = evaluate(model, tokenizer, data=data, max_new_tokens=2, progress=False)
    assert result.run.records.query("probe == 'answer_likelihood'")["ends_with_eos"].all()
    plain = evaluate(
        model, tokenizer, data=data, max_new_tokens=2, progress=False, template=TemplateSpec(kind="plain")
    )
    assert result.summary["fingerprint"]["template"] != plain.summary["fingerprint"]["template"]
    assert result.summary["fingerprint"]["tokenizer"] != plain.summary["fingerprint"]["tokenizer"]


def test_mistakes_come_before_the_model(tiny_model, tiny_tokenizer, data):
    with pytest.raises(DataError, match=r"evaluation\.data\.forget\.path: no\.jsonl does not exist"):
        evaluate("no/such/model", tiny_tokenizer, data={**data, "forget": "no.jsonl"})
    with pytest.raises(DataError, match="suite forget has no data"):
        evaluate("no/such/model", tiny_tokenizer, suite="forget")
    with pytest.raises(DataError, match=r"evaluation\.data\.forget: 'locuslab/TOFU' is neither"):
        evaluate("no/such/model", tiny_tokenizer)
    with pytest.raises(ModelError, match="'no/such/model'"):
        evaluate("no/such/model", data=data)
    with pytest.raises(ModelError, match="give `tokenizer`"):
        evaluate(tiny_model(), data=data)
