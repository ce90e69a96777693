"""One pass, many alphas: each alpha as if it were evaluated alone, and every network run once a batch."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import datasets
import pandas as pd
import pytest
import torch
from helpers_pairs import make_pair

from unlearnkit.data.columns import canonical
from unlearnkit.data.formats import Template
from unlearnkit.errors import ModelError, RecipeError
from unlearnkit.evaluation import probes
from unlearnkit.evaluation.probes import score_answers, score_at
from unlearnkit.evaluation.questions import likelihood_questions
from unlearnkit.evaluation.results import alpha_folders, read_evaluation
from unlearnkit.evaluation.runner import evaluate
from unlearnkit.evaluation.serving import served_at, serving, weights_at
from unlearnkit.evaluation.suite import load_suite
from unlearnkit.models.combined.modeling_combined import CombinedForCausalLM
from unlearnkit.models.load import model_fingerprint

ALPHAS = [0.25, 0.75, 1.5]
SUITE = """\
suite: small
version: 1
data: {forget: null, retain: null}
probes:
  answer_likelihood: [forget, retain]
  generate_answer: [forget, retain]
  sample_answer: [{dataset: forget, samples: 2}]
metrics:
  probability: {kind: probability, dataset: forget}
  rouge: {kind: rouge, dataset: retain}
  truth_ratio: {kind: truth_ratio, dataset: forget}
"""
NUMBERS = ("logps", "means", "variances")


@pytest.fixture
def pair(tiny_model):
    return lambda **options: make_pair(tiny_model(), **options)


@pytest.fixture
def data(tmp_path, fictional_rows):
    found = {}
    for name in ("forget", "retain"):
        rows = fictional_rows("forget10_perturbed" if name == "forget" else "retain_perturbed")[:3]
        found[name] = str(tmp_path / f"{name}.jsonl")
        Path(found[name]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


@pytest.fixture
def suite(tmp_path):
    (tmp_path / "small.yaml").write_text(SUITE)
    return str(tmp_path / "small.yaml")


@pytest.fixture
def run(tiny_tokenizer, data, suite):
    def call(model, **options):
        options = {"suite": suite, "data": data, "max_new_tokens": 6, "progress": False, **options}
        return evaluate(model, tiny_tokenizer, **options)

    return call


@pytest.fixture
def passes(monkeypatch):
    """`passes(model)`: role -> the tokens of every forward pass of that network so far."""

    def count(model):
        seen = {role: [] for role in model.networks}
        roles = {id(network): role for role, network in model.networks.items()}
        for kind in {type(network) for network in model.networks.values()}:
            monkeypatch.setattr(kind, "forward", noting(kind.forward, seen, roles))
        return seen

    return count


def noting(forward, seen, roles):
    @functools.wraps(forward)
    def note(self, *args, **kwargs):
        if id(self) in roles:
            seen[roles[id(self)]].append(kwargs["input_ids"].numel())
        return forward(self, *args, **kwargs)

    return note


def texts(found):
    return found.run.records.query("probe == 'generate_answer'")["text"].tolist()


def same(one, two):
    """Records of two evaluations: log-probs to 1e-6, the rest exactly."""
    exact = [name for name in one.run.records.columns if name not in NUMBERS]
    first, second = (found.run.records[exact].map(plain) for found in (one, two))
    pd.testing.assert_frame_equal(first, second, check_dtype=False)
    for name in NUMBERS:
        for a, b in zip(one.run.records[name], two.run.records[name], strict=True):
            torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-6, atol=1e-6)


def plain(value):
    """A list where a file gives an array."""
    return value.tolist() if hasattr(value, "tolist") else value


@pytest.mark.parametrize("rate", [0.01, None])
@pytest.mark.parametrize("cache", [True, False])
def test_each_alpha_is_what_it_would_be_alone(run, pair, monkeypatch, tmp_path, cache, rate):
    found = run(pair(rate=rate), alphas=ALPHAS, cache=cache)
    assert list(found.alphas) == ALPHAS
    assert found.alphas[0.75] is found
    monkeypatch.setenv("UNLEARNKIT_CACHE", str(tmp_path / "another"))
    for alpha, one in found.alphas.items():
        alone = run(pair(alpha=alpha, rate=rate), cache=cache)
        same(one, alone)
        assert one.summary["fingerprint"] == alone.summary["fingerprint"]
        assert one.summary["serving"] == alone.summary["serving"]
        assert {n: m.value for n, m in one.metrics.items()} == pytest.approx(
            {n: m.value for n, m in alone.metrics.items()}, rel=1e-5, nan_ok=True
        )
    spoken = [texts(one) for one in found.alphas.values()]
    assert spoken[0] != spoken[2], "else equal texts would prove nothing"
    assert len({one.summary["fingerprint"]["model"] for one in found.alphas.values()}) == 3


@pytest.fixture
def asked(tiny_tokenizer, fictional_rows):
    """Likelihood questions: seven answers to each prompt, so that prompts are shared."""
    rows = canonical(datasets.Dataset.from_list(fictional_rows("forget10_perturbed")[:3])).to_list()
    return likelihood_questions("forget", rows, tiny_tokenizer, Template.for_tokenizer(tiny_tokenizer))


@pytest.mark.parametrize("share_prompts", [False, True])
def test_every_network_runs_once_a_batch_whatever_the_number_of_alphas(pair, asked, passes, share_prompts):
    options = {"pad_id": 0, "batch_tokens": 300, "done": lambda n: None, "share_prompts": share_prompts}
    counts = []
    for alphas in ([0.75], ALPHAS, [0.1 * n for n in range(1, 9)]):
        model = pair()
        seen = passes(model)
        weights = [weights_at(model, alpha) for alpha in alphas]
        found = {pair: each for batch in score_at(model, weights, asked, **options) for pair, each in batch}
        assert {len(each) for each in found.values()} == {len(alphas)}
        assert seen["target"] == seen["assistant"], "as often, on the same tokens"
        counts.append(seen["target"])
    assert counts[0] == counts[1] == counts[2]
    model = pair()
    seen = passes(model)
    alone = dict(one for batch in score_answers(model, asked, **options) for one in batch)
    assert seen["target"] == counts[0]
    assert alone.keys() == found.keys()


def silent(model, tokenizer, questions, *, sampling=None, **_):
    said = {"text": "x", "tokens": [5], "num_new_tokens": 1}
    yield [(q.prompt_name if sampling is None else q.sample_name, said) for q in questions]


@pytest.mark.parametrize("cache", [True, False])
def test_likelihoods_of_a_sweep_cost_what_those_of_one_alpha_cost(
    run, pair, passes, monkeypatch, tmp_path, cache
):
    monkeypatch.setattr(probes, "generate_answers", silent)
    totals = []
    for number, alphas in enumerate([(), ALPHAS]):
        monkeypatch.setenv("UNLEARNKIT_CACHE", str(tmp_path / str(number)))
        model = pair()
        seen = passes(model)
        found = run(model, alphas=alphas, cache=cache)
        totals.append(seen)
    assert totals[0] == totals[1]
    assert totals[0]["target"]
    assert found.summary["cost"]["scored_pairs"] > 0
    assert [one.summary["cost"]["scored_pairs"] for one in found.others.values()] == [0, 0]


def test_a_sweep_asks_only_what_is_missing(run, pair, passes):
    model = pair()
    run(model)
    seen = passes(model)
    first = run(model, alphas=ALPHAS)
    assert seen["target"]
    before = len(seen["target"])
    again = run(model, alphas=ALPHAS)
    assert len(seen["target"]) == before, "everything was known"
    for alpha, one in first.alphas.items():
        same(one, again.alphas[alpha])
        assert again.alphas[alpha].asked == 0
    more = run(model, alphas=[*ALPHAS, 2.0])
    assert len(seen["target"]) > before
    assert [one.asked for one in more.alphas.values()][:2] == [0, more.alphas[0.75].asked]


def test_the_folder_gives_the_sweep_back(run, pair, tmp_path, data, suite):
    out = tmp_path / "out"
    model = pair()
    found = run(model, alphas=ALPHAS, output=out)
    of = found.summary["fingerprint"]
    assert alpha_folders(out, of) == {
        0.25: out / "alphas" / "0.25", 0.75: out, 1.5: out / "alphas" / "1.5",
    }  # fmt: skip
    assert json.loads((out / "alphas" / "alphas.json").read_text()) == {
        "of": of, "own": 0.75, "alphas": ALPHAS,
    }  # fmt: skip
    suite = load_suite(suite, data)
    read = read_evaluation(out, suite, label="told otherwise")
    assert list(read.alphas) == ALPHAS
    for alpha, one in read.alphas.items():
        same(one, found.alphas[alpha])
        assert one.summary["serving"]["alpha"] == alpha
        assert one.summary["label"] == "told otherwise"
    assert read_evaluation(out / "alphas" / "0.25", suite).alphas == {}
    model.alpha = 0.5
    run(model, output=out)
    assert alpha_folders(out, of), "what names the old model still finds it"
    assert read_evaluation(out, suite).alphas == {}, "the sweep is not of this model"
    run(model, output=out, alphas=[2.0])
    assert list(read_evaluation(out, suite).alphas) == [0.5, 2.0]
    run(model, output=out, alphas=[0.5])
    assert read_evaluation(out, suite).alphas == {}


def test_the_model_is_served_as_before(run, pair):
    model = pair()
    before, name = dict(model.config.weights), model_fingerprint(model)
    run(model, alphas=ALPHAS)
    assert (model.config.weights, model.alpha) == (before, 0.75)
    with served_at(model, 0.5):
        assert model.alpha == 0.5
    assert model.alpha == 0.75
    assert model_fingerprint(model) == name


def test_a_sweep_of_three_networks(run, tiny_model):
    """Offset unlearning: alpha is the weight of one network and takes away another."""

    def make(alpha):
        networks = {role: make_pair(tiny_model()).networks["assistant"] for role in ("tuned", "untuned")}
        for parameter in networks["untuned"].parameters():
            parameter.data = parameter * 0.9
        weights = {"base": 1.0, "tuned": alpha, "untuned": -alpha}
        return CombinedForCausalLM.of({"base": tiny_model(), **networks}, weights, kind="offset")

    found = run(make(1.0), alphas=[0.5])
    same(found.alphas[0.5], run(make(0.5), cache=False))
    assert found.alphas[0.5].summary["serving"]["weights"] == {"base": 1.0, "tuned": 0.5, "untuned": -0.5}
    assert found["probability"] != pytest.approx(found.alphas[0.5]["probability"], rel=1e-4)


def test_how_likelihoods_were_computed_is_recorded(run, pair, tiny_model):
    found = run(pair(alpha=0.5)).summary["serving"]
    sizes = {role: sum(p.numel() for p in net.parameters()) for role, net in pair().networks.items()}
    assert found == {
        "kind": "uld", "alpha": 0.5, "weights": {"target": 1.0, "assistant": -0.5}, "top_logit_filter": 0.01,
        "filtered_likelihoods": "neutral", "filtered_generation": "removed", "parameters": sizes,
    }  # fmt: skip
    unfiltered = serving(pair(rate=None))
    assert [unfiltered[f"filtered_{name}"] for name in ("likelihoods", "generation")] == [None, None]
    assert "serving" not in run(tiny_model()).summary


@pytest.mark.parametrize(
    ("alphas", "said"),
    [([0.5, 0.5], "0.5 twice"), ([0.0], "holds 0;"), ([-1], "-1"), ([float("nan")], "nan")],
)
def test_alphas_that_mean_nothing_are_refused(run, pair, alphas, said):
    with pytest.raises(RecipeError, match=said):
        run("no such model", alphas=alphas)


def test_one_model_has_no_alpha(run, tiny_model, target):
    with pytest.raises(ModelError, match="this LlamaForCausalLM is one model"):
        run(tiny_model(), alphas=[0.5])
    with pytest.raises(ModelError, match="is one model, so there is no alpha to change"):
        run(str(target), alphas=[0.5])


def test_a_sweep_of_a_folder(run, pair, tmp_path, tiny_tokenizer):
    model = pair()
    model.save_pretrained(tmp_path / "pair")
    whole, read = (
        run(model, alphas=[0.5], cache=False),
        run(str(tmp_path / "pair"), alphas=[0.5], cache=False),
    )
    assert read.summary["fingerprint"] == whole.summary["fingerprint"]
    same(read.alphas[0.5], whole.alphas[0.5])
