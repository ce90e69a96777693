"""A suite under attack: stages as evaluations, kept by content, compared with what is asked alike."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from unlearnkit.errors import RecipeError, UserError
from unlearnkit.evaluation.attacked import make_attacks, slug
from unlearnkit.evaluation.attacks import attack, available, describe
from unlearnkit.evaluation.metrics.rouge import rouge_l
from unlearnkit.evaluation.records import EvalRun
from unlearnkit.evaluation.results import read_evaluation
from unlearnkit.evaluation.runner import evaluate
from unlearnkit.evaluation.suite import load_suite


@pytest.fixture
def data(tmp_path, fictional_rows):
    files = {"forget": "forget10_perturbed", "retain": "retain_perturbed"}
    for name, split in files.items():
        rows = fictional_rows(split)[:6]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: str(tmp_path / f"{name}.jsonl") for name in files}


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(
        "# A small suite for tests\nsuite: small\nversion: 4\ndata: {forget: null, retain: null}\n"
        "probes:\n  answer_likelihood: [forget]\n  generate_answer: [forget, retain]\n  max_new_tokens: 5\n"
        "metrics:\n  forget_quality: {kind: forget_quality, dataset: forget}\n"
        "  forget_probability: {kind: probability, dataset: forget}\n"
        "  forget_rouge: {kind: rouge, dataset: forget}\n"
    )
    return path


@pytest.fixture
def run(tiny_model, tiny_tokenizer, suite, data):
    def call(model=None, **options):
        model = tiny_model() if model is None else model
        return evaluate(model, tiny_tokenizer, suite, data, progress=False, **options)

    return call


RELEARN = {"relearn": {"steps": [1, 3], "examples": 2, "learning_rate": 1e-3}}


def test_each_stage_is_an_evaluation_of_its_own(run, tmp_path):
    found = run(attacks=RELEARN, output=tmp_path / "out")
    assert [one.stage for one in found.attacked] == [("relearn", "1 step"), ("relearn", "3 steps")]
    values = [found["forget_probability"], *(one["forget_probability"] for one in found.attacked)]
    assert values[0] < values[1] < values[2], "it comes back, more with more steps"
    folder = tmp_path / "out" / "attacks" / "relearn"
    assert sorted(p.name for p in folder.iterdir()) == ["1-step", "3-steps", "stages.json"]
    meta = EvalRun.load(folder / "3-steps").meta["attack"]
    assert (meta["name"], meta["level"], meta["options"]["steps"]) == ("relearn", 3, [1, 3])
    assert len(meta["seen"]) == 2
    assert meta["facts"]["loss"] < meta["facts"]["loss_before"]


def test_what_an_attack_left_alone_is_not_asked_again(run):
    """Other wordings of the four forget questions: those of the retain set keep their answers."""
    found = run(attacks={"rephrase": {"forms": ["paraphrase"]}})
    assert found.summary["cost"]["generated"] == 8
    assert found.attacked[0].summary["cost"]["generated"] == 4


def test_stages_on_disk_are_read(run, tmp_path, monkeypatch):
    first = run(attacks=RELEARN, output=tmp_path / "out")

    def never(self, subject):
        raise AssertionError("attacked again")

    monkeypatch.setattr("unlearnkit.evaluation.attacks.relearn.Relearn.stages", never)
    again = run(attacks=RELEARN, output=tmp_path / "out")
    assert [one.stage for one in again.attacked] == [one.stage for one in first.attacked]
    assert [one["forget_rouge"] for one in again.attacked] == [one["forget_rouge"] for one in first.attacked]
    for change in ({"relearn": {**RELEARN["relearn"], "learning_rate": 2e-3}}, {"relearn": {}}):
        with pytest.raises(AssertionError, match="attacked again"):
            run(attacks=change, output=tmp_path / "out")


def test_a_file_that_an_option_names_counts_by_its_content(run, tmp_path):
    text = tmp_path / "other.jsonl"
    attacks = {"relearn": {"steps": [2], "source": str(text), "learning_rate": 1e-3}}
    values = []
    for said in ("Bread is baked.", "Bread is baked.", "Ships sail at night."):
        text.write_text(json.dumps({"question": "What?", "answer": said}) + "\n")
        found = run(attacks=attacks, output=tmp_path / "out").attacked[0]
        values.append(found["forget_probability"])
    assert values[0] == values[1] != values[2]


def test_a_half_written_stage_is_made_anew(run, tmp_path):
    run(attacks=RELEARN, output=tmp_path / "out")
    broken = tmp_path / "out" / "attacks" / "relearn" / "1-step" / "records.parquet"
    broken.write_bytes(b"half")
    again = run(attacks=RELEARN, output=tmp_path / "out")
    assert len(again.attacked) == 2
    assert EvalRun.load(broken.parent).records["example_id"].nunique() > 2


def test_the_retain_model_is_compared_under_the_same_attack(run, tiny_model):
    """One model as both: no distance under the same attack, some against the plain one."""
    attacks = {"relearn": {"steps": [4], "examples": 6, "batch_size": 6, "learning_rate": 5e-3}}
    plain = run(role="retain")
    attacked = run(role="retain", attacks=attacks)
    same = run(attacks=attacks, reference=attacked).attacked[0].metrics["forget_quality"]
    other = run(attacks=attacks, reference=plain).attacked[0].metrics["forget_quality"]
    assert same.extra["statistic"] == 0
    assert other.extra["statistic"] > 0


def test_other_questions_are_not_compared_with_the_plain_answers(run):
    plain = run(role="retain")
    forms = {"rephrase": {"forms": ["paraphrase"]}}
    found = run(attacks=forms, reference=plain).attacked[0]
    assert not found.metrics["forget_quality"].measured
    own = run(role="retain", attacks=forms)
    assert run(attacks=forms, reference=own).attacked[0]["forget_quality"] == 1


def test_the_worst_of_the_samples_stands_as_the_answer(run):
    """At temperature 1 a random model's samples differ; the one kept has the largest overlap of all eight."""
    found = run(attacks={"sampling": {"samples": 8, "seed": 3}})
    (stage,) = found.attacked
    records = stage.run.records.query("probe == 'generate_answer' and dataset == 'forget'")
    assert len(records) == 4
    assert set(records["index"]) == {0}
    few = run(attacks={"sampling": {"samples": 2, "seed": 3}}).attacked[0].run.records
    few = few.query("probe == 'generate_answer' and dataset == 'forget'")
    for many, some in zip(records.itertuples(), few.itertuples(), strict=True):
        assert many.example_id == some.example_id
        assert rouge_l(many.reference_text, many.text) >= rouge_l(some.reference_text, some.text)
    plain = found.run.records.query("dataset == 'retain'")["text"].tolist()
    assert stage.run.records.query("dataset == 'retain'")["text"].tolist() == plain


def test_the_first_tokens_move_into_the_prompt(run):
    found = run(attacks={"prompt": {"variants": ["prefix"], "prefix_tokens": 4}})
    before, after = found.run, found.attacked[0].run
    query = "probe == 'answer_likelihood' and field == 'answer'"
    old, new = (one.records.query(query).set_index("example_id") for one in (before, after))
    assert (old["num_tokens"] - new["num_tokens"]).tolist() == [4] * 4
    for name in old.index:  # the same tokens after the same tokens: the same log-probs
        assert list(new["logps"][name]) == pytest.approx(list(old["logps"][name][4:]), abs=1e-5)
        assert old["reference_text"][name].endswith(new["reference_text"][name])


def test_an_attack_of_ones_own(run, tmp_path, monkeypatch):
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "shout.py").write_text(
        "import contextlib, dataclasses\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Shout:\n"
        "    '''Asks in capitals.'''\n"
        "    times: int = 1\n"
        "    @contextlib.contextmanager\n"
        "    def stages(self, subject):\n"
        "        rows = [{**r, 'prompt': r['prompt'].upper() * self.times} for r in subject.rows['forget']]\n"
        "        rows = {**subject.rows, 'forget': rows}\n"
        "        yield iter([dataclasses.replace(subject, rows=rows, variant='x')])\n"
        "ATTACK = Shout\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = run(attacks={"my.shout": {"times": 2}}).attacked[0]
    assert found.stage == ("my.shout", "x")
    asked = found.run.records.query("dataset == 'forget'")["prompt"]
    assert asked.tolist() == asked.str.upper().tolist()


def test_the_model_is_left_as_it_was(run, tiny_model):
    model = tiny_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(model, attacks={**RELEARN, "quantize": {"bits": ["nf4"]}, "prompt": {}})
    assert model.training
    assert all((value == before[name]).all() for name, value in model.state_dict().items())


def test_mistakes():
    with pytest.raises(RecipeError, match="unknown attack 'relern'; did you mean 'relearn'"):
        make_attacks(["relern"])
    with pytest.raises(RecipeError, match="no option 'step'; did you mean 'steps'"):
        make_attacks({"relearn": {"step": 3}})
    with pytest.raises(RecipeError, match=r"relearn.steps must be a list of a whole number, found 3"):
        make_attacks({"relearn": {"steps": 3}})
    with pytest.raises(RecipeError, match=r"'no\.such' cannot be loaded .* name a module that holds ATTACK"):
        make_attacks(["no.such"])


@pytest.mark.parametrize("name", available())
def test_every_attack_explains_itself(name):
    line = describe(name)
    assert 10 < len(line) < 110
    assert line.endswith(".")
    assert dataclasses.is_dataclass(attack(name))


def test_slug():
    assert slug("10 steps") == "10-steps"
    assert slug("worst of 8") == "worst-of-8"
    assert slug("../x") == "..-x"
    assert slug("日本") == "日本"
    assert slug("//") == "stage"


def test_what_decides_a_stage_decides_whether_it_is_read(run, tmp_path, tiny_model, suite):
    """The bound of a generation, what the suite asks, and another model in the same folder."""
    first = run(attacks=RELEARN, output=tmp_path / "out").attacked[-1]
    assert max(first.run.records["tokens"].map(len)) == 5
    longer = run(attacks=RELEARN, output=tmp_path / "out", max_new_tokens=9).attacked[-1]
    assert max(longer.run.records["tokens"].map(len)) > 5
    suite.write_text(
        suite.read_text().replace("answer_likelihood: [forget]", "answer_likelihood: [forget, retain]")
    )
    more = run(attacks=RELEARN, output=tmp_path / "out").attacked[-1]
    assert "retain" in set(more.run.records.query("probe == 'answer_likelihood'")["dataset"])
    other = tiny_model()
    with torch.no_grad():
        other.lm_head.weight.mul_(1.5)
    assert run(other, output=tmp_path / "out").attacked == []
    assert read_evaluation(tmp_path / "out", load_suite(suite)).attacked == [], "stages of another model"


def test_a_stage_on_disk_has_the_metrics_of_today(run, tmp_path):
    retain = run(role="retain", attacks=RELEARN)
    run(attacks=RELEARN, output=tmp_path / "out")
    run(attacks=RELEARN, output=tmp_path / "out", reference=retain)
    meta = EvalRun.load(tmp_path / "out" / "attacks" / "relearn" / "3-steps").meta
    assert meta["metrics"]["forget_quality"]["value"] == 1.0


def test_a_control_is_the_same_attack_with_the_same_options(run):
    retain = run(role="retain", attacks={"prompt": {"variants": ["prefix"], "prefix_tokens": 1}})
    other = run(attacks={"prompt": {"variants": ["prefix"], "prefix_tokens": 3}}, reference=retain)
    assert not other.attacked[0].metrics["forget_quality"].measured
    same = run(attacks={"prompt": {"variants": ["prefix"], "prefix_tokens": 1}}, reference=retain)
    assert same.attacked[0]["forget_quality"] == 1.0


def test_a_judge_is_not_attacked_itself(tiny_model, tiny_tokenizer, tmp_path, data):
    """The target relearning judges nothing; a target beside it does, and what it said clean stays."""
    path = tmp_path / "judge.yaml"
    path.write_text(
        "suite: judge\nversion: 1\ndata: {forget: null, retain: null}\n"
        "probes: {generate_answer: [forget], judged_likelihood: [forget], max_new_tokens: 4}\n"
        "metrics: {said: {kind: judged_logp, dataset: forget}}\n"
    )
    options = {"suite": path, "data": data, "progress": False}
    target = tiny_model()
    found = evaluate(target, tiny_tokenizer, role="target", attacks=RELEARN, **options)
    assert found.metrics["said"].measured
    assert not found.attacked[0].metrics["said"].measured
    beside = evaluate(tiny_model(), tiny_tokenizer, target=target, attacks=RELEARN, **options)
    assert beside.attacked[0].metrics["said"].measured
    again = evaluate(tiny_model(), tiny_tokenizer, target=target.train(), cache=False, **options)
    assert again["said"] == pytest.approx(found["said"])
    assert target.training


def test_an_attack_is_given_once_and_refused_early(run, tiny_model):
    with pytest.raises(RecipeError, match="relearn is given twice"):
        make_attacks(["relearn", "relearn"])
    model = tiny_model()
    model.forward = None  # nothing may be asked
    for attacks, match in (
        ({"relearn": {"source": "nowhere"}}, "relearn.source is 'nowhere'"),
        ({"strip_adapter": {}}, "adapter"),
        ({"prompt": {"dataset": "nobody"}}, "nobody"),
    ):
        with pytest.raises(UserError, match=match):
            run(model, attacks=attacks)


def test_members_asked_otherwise_than_the_holdout_are_not_compared(
    tiny_model, tiny_tokenizer, tmp_path, data
):
    found = evaluate(
        tiny_model(), tiny_tokenizer, "membership", {"forget": data["forget"], "holdout": data["retain"]},
        attacks={"prompt": {"variants": ["prefix"]}, **RELEARN}, progress=False,
    )  # fmt: skip
    by_stage = {one.stage[0]: one.metrics["membership_loss"] for one in found.attacked}
    assert "asks about the members otherwise" in by_stage["prompt"].note
    assert by_stage["relearn"].measured


def test_a_limit_takes_the_same_examples_under_attack(tiny_model, tiny_tokenizer, tmp_path, fictional_rows):
    """The first row has no paraphrased question and is left out: the others do not move up."""
    rows = fictional_rows("forget10_perturbed")[:4]
    rows[0] = {**rows[0], "paraphrased_question": None}
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "limited.yaml"
    path.write_text(
        "suite: limited\nversion: 1\ndata: {forget: null}\n"
        "probes: {generate_answer: [{dataset: forget, limit: 2}], max_new_tokens: 2}\nmetrics: {}\n"
    )
    found = evaluate(
        tiny_model(), tiny_tokenizer, path, {"forget": str(tmp_path / "f.jsonl")}, progress=False,
        attacks={"rephrase": {"forms": ["paraphrase"]}},
    )  # fmt: skip
    plain, attacked = (
        found.run.records["example_id"].tolist(),
        found.attacked[0].run.records["example_id"].tolist(),
    )
    assert len(plain) == 2
    assert attacked == plain[1:]


def test_what_hooks_change_is_not_kept(run, tiny_model):
    before = run(tiny_model())
    hooked = tiny_model()
    hooked.get_output_embeddings().register_forward_hook(lambda module, args, logits: logits * 3)
    assert run(hooked)["forget_probability"] != before["forget_probability"]
    assert run(tiny_model()).asked == 0
