"""The benchmarks: what they compute is right. How long anything takes is no test's matter."""

from __future__ import annotations

import importlib
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from unlearnkit.files import write_json

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
KNOWN = {"model_utility", "forget_quality", "forget_rouge", "forget_judged_logp", "membership_gradient_norm"}


@pytest.fixture(scope="module")
def small(tiny_model, tiny_tokenizer, tmp_path_factory):
    """Three small models, as `--model`, `--retain` and `--target` take them; large weights make them say
    words."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("model", "retain", "target")):
        model, generator = tiny_model(), torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.data.normal_(std=0.4, generator=generator)
        model.save_pretrained(folder / name)
        tiny_tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in ("model", "retain", "target")}


@pytest.fixture
def speed(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("eval_speed")


def test_both_ways_of_evaluating_agree(speed, small, tmp_path):
    paths = importlib.import_module("eval_paths")
    task = speed.prepare(speed.Settings(**small, limit=3, max_new_tokens=16, authors=20), tmp_path)
    numbers = {name: paths.measured(name, task) for name in speed.PATHS}
    suite = speed.load_suite(speed.SUITE, task.data)
    found = speed.differences(numbers, suite)
    assert len(found) == len(suite.metrics) - 2, "all but the two of sampled answers, holdout included"
    assert found.keys() >= KNOWN
    assert max(found.values()) <= speed.AGREEMENT
    plain, shipped = (numbers[name] for name in speed.PATHS)
    assert 0 < shipped["forward passes"] < plain["forward passes"]
    assert 0 < shipped["positions"] < plain["positions"]
    assert plain["seconds"].keys() >= set(speed.PARTS)
    assert shipped["seconds"].keys() >= set(speed.PARTS)
    shown = speed.cells(numbers)
    assert [len(row) for row in shown] == [4] * len(shown)
    json.dumps(numbers)


def test_preference_curves(monkeypatch, tmp_path, capsys):
    """Five steps: the second half are the last three. Chosen: (-2 - 3 - 7) / 3 = -4; rejected twice that;
    margins 1/8 of it, negative: 1/2; accuracies 0, 1/2 and 1: 1/2. The start is the first step's.
    """
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    curves = importlib.import_module("preference_curves")
    steps = zip((-1.0, -9.0, -2.0, -3.0, -7.0), (1.0, 1.0, 0.0, 0.5, 1.0), strict=True)
    lines = [
        {"logps/chosen": c, "logps/rejected": 2 * c, "rewards/accuracies": a, "rewards/margins": -c / 8}
        for c, a in steps
    ]
    run, plain = tmp_path / "run", tmp_path / "plain"
    for folder, entries in ((run, [*lines, {"train_runtime": 3.0}]), (plain, [{"forget/npo": 1.0}])):
        folder.mkdir()
        (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert curves.second_half(curves.read_log(run)) == {
        "logps/chosen": -4.0, "logps/rejected": -8.0, "rewards/accuracies": 0.5, "rewards/margins": 0.5,
    }  # fmt: skip
    image = tmp_path / "curves.png"
    monkeypatch.setattr("sys.argv", ["preference_curves", f"RPO={run},{run}", "--out", str(image)])
    curves.main()
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split() for row in rows] == [["RPO", "-1.000", "-4.000", "-8.000", "0.500", "0.500"]] * 2
    assert image.stat().st_size > 0
    for folder in (plain, tmp_path / "nowhere"):
        with pytest.raises(SystemExit, match=r"holds no step with logps/chosen; name the folder of a pref"):
            curves.read_log(folder)


def test_a_metric_that_one_way_lacks_is_a_difference(speed):
    numbers = {"plain": {"values": {"a": 1.0, "b": 2.0}}, "shipped": {"values": {"a": 1.5}}}

    class Suite:
        metrics = {}  # noqa: RUF012

    assert speed.differences(numbers, Suite) == {"a": 0.5, "b": math.inf}


def test_goldfish_throughput(monkeypatch, tmp_path, capsys):
    """The quick way through, on which both losses are compared; the kept share is near 1 - 1/k."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    throughput = importlib.import_module("goldfish_throughput")
    out = tmp_path / "out.json"
    quick = "--documents 4 --batch 2 --pairs 2 --warm-up 0 --repeats 1 --max-length 64 --h 3"
    monkeypatch.setattr("sys.argv", ["goldfish_throughput", *quick.split(), "--json", str(out)])
    throughput.main()
    numbers = json.loads(out.read_text())
    assert numbers["documents"] == 4
    assert numbers["kept"] == pytest.approx(0.75, abs=0.08)
    low, high = numbers["ratio"][1:]
    assert 0 < low <= numbers["ratio"][0] <= high
    assert numbers["tokenising"].keys() == throughput.MASKS.keys()
    assert all(ms > 0 for ms in numbers["tokenising"].values())
    shown = capsys.readouterr().out
    assert "| plain step | goldfish step | goldfish / plain (95 %) | kept |" in shown


def test_goldfish_throughput_reports_the_median_ratio(monkeypatch):
    """Of ratios 1, 2 and 9 the middle one; resampled medians lie among them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    throughput = importlib.import_module("goldfish_throughput")
    assert throughput.interval([1.0, 9.0, 2.0], seed=0) == (2.0, 1.0, 9.0)
    assert throughput.interval([1.5] * 5, seed=0)[1:] == (1.5, 1.5)


def test_a_corpus_in_memory_and_on_disk(monkeypatch, tmp_path):
    """Both ways read the same tokens in as many blocks; what each holds is measured elsewhere."""
    for name in ("HF_HOME", "HF_HUB_OFFLINE", "UNLEARNKIT_CACHE"):
        monkeypatch.setenv(name, os.environ[name])
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    memory = importlib.import_module("corpus_memory")
    memory.write_corpus(tmp_path / "corpus.jsonl", 0.2)
    one, other = (
        memory.measured(tmp_path / "corpus.jsonl", tmp_path / str(on_disk), on_disk)
        for on_disk in (True, False)
    )
    same = ("documents", "tokens", "blocks", "fill")
    assert [one[key] for key in same] == [other[key] for key in same]
    assert one["megabytes"] > 0.2
    assert 0.9 < one["fill"] <= 1
    assert one["seconds"].keys() - other["seconds"].keys() == {"again"}
    assert min(one["own_mb"], one["resident_mb"]) >= 0


def test_goldfish_curve(monkeypatch, tmp_path, tiny_model, tiny_tokenizer, capsys):
    """160 tokens and an EOS, of which the model has only token 130 wrong, at p = 1/10: the cut at 50 is
    recited (50 to 99), that at 100 is not (100 to 149), and neither is the end (110 to 159); there is no room
    for one at 150. The other losses are 0, so the sum is ln 10.
    """
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    curve = importlib.import_module("goldfish_curve")
    ids = [*range(3, 163), 1]

    def model(input_ids):
        logits = torch.full((1, len(ids), 200), -1e9)
        for place, true in enumerate(ids[1:]):
            logits[0, place, true] = 0.0
        logits[0, 129, ids[130]], logits[0, 129, 199] = math.log(0.1), math.log(0.9)
        return SimpleNamespace(logits=logits)

    cuts, end, loss, tokens = curve.look(model, ids)
    assert (cuts, end, tokens) == ([True, False], False, 160)
    assert loss == pytest.approx(math.log(10), rel=1e-5)
    assert curve.interval([1.0, 1.0], [2, 2]) == [0.5, 0.5, 0.5]

    run, image, numbers = tmp_path / "run", tmp_path / "k.png", tmp_path / "k.json"
    tiny_model().save_pretrained(run / "model")
    tiny_tokenizer.save_pretrained(run / "model")
    rows = [{"question": "Who?", "answer": f"It was number {i}, a book of {i} pages."} for i in range(4000)]
    write_json(tmp_path / "full.json", rows)
    monkeypatch.setattr(curve, "SEEN", "0:40")
    monkeypatch.setattr(curve, "UNSEEN", "40:80")
    arguments = [
        f"plain={run}",
        f"4={run}",
        "--root",
        str(tmp_path),
        "--out",
        str(image),
        "--json",
        str(numbers),
    ]
    monkeypatch.setattr("sys.argv", ["goldfish_curve", *arguments])
    curve.main()
    assert len(capsys.readouterr().out.splitlines()) == 3
    found = json.loads(numbers.read_text())
    assert found["plain"] == found["4"]
    assert found["4"]["documents"] == 2
    assert image.stat().st_size > 0
    monkeypatch.setattr("sys.argv", ["goldfish_curve", f"plain={run}", "--out", str(image)])
    with pytest.raises(SystemExit):
        curve.main()
    assert "name at least one as k=RUN" in capsys.readouterr().err


@pytest.fixture
def small_shape(monkeypatch):
    """Two layers of width 64, of which one is the assistant's."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    shapes = importlib.import_module("uld_shapes")
    shape = {**shapes.SHAPES["tofu_tiny"], "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 96}
    monkeypatch.setitem(shapes.SHAPES, "small", shape)
    return {"shape": "small", "layers": 1, "dtype": "float32", "threads": torch.get_num_threads()}


def test_uld_steps(small_shape, monkeypatch, tmp_path, capsys):
    """NPO trains the 64 * (96 + 1) weights of embeddings and final norm, and of both layers 4 * 64 * 256 in
    the attention (4 heads of 64), 3 * 64 * 704 in the MLP and 2 * 64 in norms. An adapter has 32 * (in + out)
    for each matrix: 4 * 32 * 320 + 3 * 32 * 768 a layer.
    """
    steps = importlib.import_module("uld_steps")
    out = tmp_path / "out.json"
    memory = {"ULD": 2**30, "NPO, live": 3 * 2**30, "NPO, cached": 2**31, "NPO, LoRA": 2**31}
    monkeypatch.setattr(steps, "memories", lambda settings: memory)
    options = "--layers 1 --dtype float32 --rows 2 --question 3 --answer 4 --rounds 2 --warm-up 0 --adamw"
    arguments = ["--shape", "small", *options.split(), "--threads", str(small_shape["threads"])]
    monkeypatch.setattr("sys.argv", ["uld_steps", *arguments, "--json", str(out)])
    steps.main()
    found = json.loads(out.read_text())["steps"]
    whole = 64 * 97 + 2 * (4 * 64 * 256 + 3 * 64 * 704 + 2 * 64)
    adapter = 4 * 32 * 320 + 3 * 32 * 768
    assert {name: n["trained"] for name, n in found.items()} == {
        "ULD": adapter, "NPO, live": whole, "NPO, cached": whole, "NPO, LoRA": 2 * adapter,
    }  # fmt: skip
    assert [n["memory_ratio"] for n in found.values()] == [1, 3, 2, 2]
    assert found["ULD"]["cpu_ratio"] == [1, 1, 1]
    assert all(0 < n["cpu_ratio"][1] <= n["cpu_ratio"][0] <= n["cpu_ratio"][2] for n in found.values())
    assert "| NPO, live |" in capsys.readouterr().out


def test_the_steps_of_uld_and_npo_train_what_they_say(small_shape):
    """The assistant runs one layer of two; a reference with other weights than the rest is noticed."""
    steps, methods = (importlib.import_module(name) for name in ("uld_steps", "uld_methods"))
    settings = methods.Settings(**small_shape, rows=2, question=3, answer=4)
    rows = methods.load_rows(settings)
    assert [row["labels"][:3] for row in rows["forget"]] == [[-100] * 3] * 8
    items = methods.batches(rows, settings, 5)
    assert [len(step) for step in items] == [2] * 5
    target = settings.model()
    methods.add_reference(target, rows, "cpu")
    made = {name: make(target, settings, settings.model()) for name, make in methods.METHODS.items()}
    assert len(made["ULD"].policy.get_base_model().model.layers) == 1
    assert steps.check_references(made, items[0], "float32") <= 1e-4
    with torch.no_grad():
        made["NPO, live"].provider.model.lm_head.weight.mul_(30)
    with pytest.raises(AssertionError, match="the losses of NPO differ"):
        steps.check_references(made, items[0], "float32")


def test_peak_memory_of_a_step(small_shape, monkeypatch):
    """256 * 32,000 weights of the embeddings, and as many gradients, are 65 MB in float32."""
    steps, methods = (importlib.import_module(name) for name in ("uld_steps", "uld_methods"))
    shapes = importlib.import_module("uld_shapes").SHAPES
    shapes["small"] |= {"hidden_size": 256, "vocab_size": 32000}
    settings, sent = methods.Settings(**small_shape, rows=1, question=2, answer=2), []
    steps.peak_memory("NPO, cached", settings, SimpleNamespace(send=sent.append))
    assert 50e6 < sent[0] < 300e6


def test_uld_generation(small_shape, monkeypatch, tmp_path, capsys):
    """The pair says something else than its target, and the same by either loop; 1 layer of 2 may take 1.5 *
    1.25 of the target's time."""
    generation = importlib.import_module("uld_generation")
    settings = generation.Settings(**small_shape)
    target, pair = generation.prepared(settings)
    prompts = [[5, 6, 7], [8, 9, 10]]
    texts = {
        (loop, name): run(model, prompts, 6)
        for loop, run in generation.LOOPS.items()
        for name, model in (("target", target), ("pair", pair))
    }
    assert texts["generate", "pair"] == texts["decode", "pair"] != texts["decode", "target"]
    assert texts["generate", "target"] == texts["decode", "target"]
    out = tmp_path / "out.json"
    options = "--layers 1 --rows 2 --prompt 3 --new 4 --rounds 2 --warm-up 0"
    arguments = ["--shape", "small", *options.split(), "--threads", str(small_shape["threads"])]
    monkeypatch.setattr("sys.argv", ["uld_generation", *arguments, "--json", str(out)])
    generation.main()
    numbers = json.loads(out.read_text())
    assert (numbers["layers"], numbers["of"], numbers["allowed"]) == (1, 2, 1.5 * 1.25)
    for loop in generation.LOOPS:
        ratio, low, high = numbers["loops"][loop]["cpu"]["ratio"]
        assert 0 < low <= ratio <= high
    assert "| decode |" in capsys.readouterr().out
