"""lm-evaluation-harness's tasks in our records: lm-eval's own numbers, every setting passed on."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.metadata
import importlib.util
import io
import json
import logging
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers_pairs import make_pair

from unlearnkit.errors import DataError, ModelError, RecipeError, UnreachableError, UserError
from unlearnkit.evaluation import capability, harness, lm_tasks
from unlearnkit.evaluation.capability import TaskSpec, check, metrics_for, require, run_tasks
from unlearnkit.evaluation.metrics import KINDS, task_score
from unlearnkit.evaluation.records import new_records
from unlearnkit.evaluation.serving import served_at
from unlearnkit.strict import Reader
from unlearnkit.yamlfile import read_document

pytest.importorskip("lm_eval")
FOLDER = Path(__file__).parent / "capability_tasks"
PASSED_ON = (
    "tasks", "limit", "num_fewshot", "apply_chat_template", "fewshot_as_multiturn", "system_instruction",
    "gen_kwargs",
)  # fmt: skip
SUITE = Path(__file__).parents[2] / "eval" / "suites" / "capability.yaml"


@pytest.fixture(autouse=True)
def _beside_the_tasks(monkeypatch):
    """lm-eval reads data files from where the command is run."""
    monkeypatch.chdir(FOLDER.parent)


def spec_of(*tasks: str, **options: Any) -> TaskSpec:
    return TaskSpec(list(tasks), include_path=str(FOLDER), **options)


@contextlib.contextmanager
def forwards(model):
    """The batch sizes of the model's forward passes; a generation's are all in it."""
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(args[0] if args else kwargs["input_ids"])), with_kwargs=True
    )
    try:
        yield sizes
    finally:
        hook.remove()


@pytest.fixture
def ask(tiny_model, tiny_tokenizer):
    """`ask(spec)` -> records of the tiny model."""
    model = tiny_model()
    return lambda spec, tokenizer=None, **options: new_records(
        run_tasks(model, tokenizer or tiny_tokenizer, spec, progress=False, **options)
    )


def own_numbers(model, tokenizer, spec: TaskSpec) -> dict[str, dict[str, Any]]:
    """What lm-eval's own command reports for the same settings."""
    from lm_eval import evaluator, simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with contextlib.redirect_stderr(io.StringIO()), pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "add_env_info", lambda results: None)  # runs pip and git for seconds
        options = {key: getattr(spec, key) for key in PASSED_ON}
        seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
        return simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4),
            task_manager=TaskManager(include_path=spec.include_path, include_defaults=False),
            bootstrap_iters=0,
            **options,
            **dict.fromkeys(seeds, spec.seed),
        )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_fewshot": 2, "seed": 5, "limit": 4, "system_instruction": "Be brief.",
         "gen_kwargs": {"max_gen_toks": 3}},
        {"num_fewshot": 2, "apply_chat_template": True, "fewshot_as_multiturn": True},
    ],
)  # fmt: skip
def test_numbers_and_prompts_are_those_of_lm_eval(options, tmp_path, tiny_model, chat_tokenizer, monkeypatch):
    """Tasks of each kind, a group, filters: every number and every prompt that `simple_evaluate` gives."""
    model, tokenizer = tiny_model(), chat_tokenizer()
    folder = shutil.copytree(FOLDER, tmp_path / FOLDER.name)
    monkeypatch.chdir(tmp_path)
    spec = TaskSpec(["tiny", "tiny_words", "tiny_texts"], include_path=str(folder), batch_size=3, **options)
    # Some of the true answers become what the model says, so that exact match is neither 0 nor 1.
    said = [
        row for row in run_tasks(model, tokenizer, spec, progress=False) if row["dataset"] == "tiny_words"
    ]
    words = [json.loads(line) for line in (folder / "words.jsonl").read_text().splitlines()]
    if not spec.num_fewshot:
        for place in (1, 3):
            words[place]["answer"] = next(r["text"] for r in said if r["example_id"] == f"0000{place}")
        (folder / "words.jsonl").write_text("".join(json.dumps(word) + "\n" for word in words))

    frame = new_records(run_tasks(model, tokenizer, spec, progress=False))
    theirs = own_numbers(model, tokenizer, spec)
    for name in ("tiny", "tiny_colours", "tiny_shapes", "tiny_words", "tiny_texts"):
        numbers = {k: v for k, v in theirs["results"][name].items() if "," in k and "_stderr" not in k}
        assert numbers, name
        for key, value in numbers.items():
            ours = task_score(frame, dataset=name, field=key.removesuffix(",none"))
            assert ours.value == pytest.approx(value, rel=1e-5), (name, key)
            assert ours.n == theirs["results"][name]["sample_len"]
    for name, samples in theirs["samples"].items():
        mine = frame[frame["dataset"].str.endswith(name)]
        prompts = dict(zip(mine["example_id"], mine["prompt"], strict=True))
        for sample in samples:
            if name != "tiny_texts":
                assert prompts[f"{sample['doc_id']:05d}"] == sample["arguments"][0][0]
    if not options:
        assert task_score(frame, dataset="tiny_words", field="exact_match,whole").value == pytest.approx(0.4)
        assert 0 < task_score(frame, dataset="tiny").value < 1


def test_a_combined_model_is_asked_like_any_other(tiny_model, tiny_tokenizer):
    model, values = make_pair(tiny_model()), {}
    spec = spec_of("tiny_texts", "tiny_words", limit=3)
    for alpha in (0.75, 1.5):
        with served_at(model, alpha):
            frame = new_records(run_tasks(model, tiny_tokenizer, spec, progress=False))
            theirs = own_numbers(model, tiny_tokenizer, spec)["results"]["tiny_texts"]["byte_perplexity,none"]
            values[alpha] = task_score(frame, dataset="tiny_texts", field="byte_perplexity").value
            assert values[alpha] == pytest.approx(theirs, rel=1e-5)
            first = frame[frame["dataset"] == "tiny_words"].iloc[0]
            ids = tiny_tokenizer(first["prompt"], return_tensors="pt")
            said = model.generate(**ids, max_new_tokens=40, do_sample=False)[0, ids["input_ids"].shape[1] :]
            assert tiny_tokenizer.decode(said, skip_special_tokens=True).startswith(first["text"])
            assert first["text"]
    assert values[0.75] != pytest.approx(values[1.5], rel=1e-3)


def test_a_record_tells_what_was_asked_and_answered(ask):
    frame = ask(spec_of("tiny", "tiny_words", "tiny_texts"), suite="capability/1")
    assert set(frame["probe"]) == {"lm_eval"}
    assert set(frame["suite"]) == {"capability/1"}
    assert list(dict.fromkeys(frame["dataset"])) == [
        "tiny/tiny_colours", "tiny/tiny_shapes", "tiny_words", "tiny_texts",
    ]  # fmt: skip
    colours = frame[(frame["dataset"] == "tiny/tiny_colours") & (frame["field"] == "acc")]
    docs = [json.loads(line) for line in (FOLDER / "colours.jsonl").read_text().splitlines()]
    assert list(colours["example_id"]) == [f"{i:05d}" for i in range(len(docs))]
    for doc, (_, row) in zip(docs, colours.iterrows(), strict=True):
        assert row["prompt"] == f"Question: What colour has {doc['thing']}?\nAnswer:"
        assert row["reference_text"] == doc["choices"][doc["answer"]]
        assert row["text"] in doc["choices"]
        assert row["value"] == (row["text"] == row["reference_text"])
    words = frame[frame["dataset"] == "tiny_words"]
    assert list(dict.fromkeys(words["field"])) == ["exact_match,whole", "exact_match,first_word"]
    assert list(words["reference_text"])[:5] == ["apple", "river", "stone", "cloud", "paper"]
    texts = frame[(frame["dataset"] == "tiny_texts") & (frame["field"] == "byte_perplexity")]
    assert list(texts["num_tokens"]) == [len(text.encode()) for text in texts["reference_text"]]


@pytest.mark.parametrize("shots", [0, 1, 3])
def test_the_number_of_worked_examples(ask, shots, caplog):
    frame = ask(spec_of("tiny", num_fewshot=shots))
    colours = frame[frame["dataset"] == "tiny/tiny_colours"]["prompt"]
    assert set(colours.str.count("Question:")) == {shots + 1}
    assert (colours.str.count("\nAnswer: ") == shots).all(), "the worked examples have answers"
    shapes = frame[frame["dataset"] == "tiny/tiny_shapes"]["prompt"]
    assert set(shapes.str.count("Question:")) == {1}, "lm-eval keeps a task's own 0"
    assert ("tiny_shapes is defined with 0 worked examples" in caplog.text) == (shots > 0)


def test_the_seed_draws_the_worked_examples(ask):
    prompts = [list(ask(spec_of("tiny_colours", num_fewshot=2, seed=seed))["prompt"]) for seed in (0, 0, 1)]
    assert prompts[0] == prompts[1] != prompts[2]


def test_the_chat_template(ask, chat_tokenizer):
    spec = spec_of(
        "tiny_colours", num_fewshot=1, apply_chat_template=True, system_instruction="Answer in one word."
    )
    frame = ask(spec, chat_tokenizer("qwen"))
    assert frame["prompt"].str.startswith("<|system|>\nAnswer in one word.").all()
    assert set(frame["prompt"].str.count(r"<\|user\|>")) == {1}
    assert frame["prompt"].str.endswith("<|assistant|>\n").all()
    turns = ask(dataclasses.replace(spec, fewshot_as_multiturn=True), chat_tokenizer("qwen"))
    assert set(turns["prompt"].str.count(r"<\|user\|>")) == {2}


def test_a_chat_template_by_its_name(ask, chat_tokenizer):
    tokenizer = chat_tokenizer("qwen")
    tokenizer.chat_template = {
        "default": tokenizer.chat_template,
        "plain": "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}",
    }
    frame = ask(spec_of("tiny_colours", apply_chat_template="plain"), tokenizer)
    assert frame["prompt"].str.startswith("[user] Question:").all()
    with pytest.raises(RecipeError, match="no chat template named 'plan'; did you mean 'plain'"):
        ask(spec_of("tiny_colours", apply_chat_template="plan"), tokenizer)


def test_a_chat_template_that_is_not_there(ask):
    with pytest.raises(RecipeError, match="has no chat template; leave the key out"):
        ask(spec_of("tiny_colours", apply_chat_template=True))


@pytest.mark.parametrize("size", [1, 3, 7])
def test_the_batch_size(tiny_model, tiny_tokenizer, size):
    """28 choices and 5 generations, so many at a time; what is scored does not depend on it."""
    model = tiny_model()
    spec = spec_of("tiny_colours", "tiny_words", batch_size=size)
    with forwards(model) as sizes:
        rows = run_tasks(model, tiny_tokenizer, spec, progress=False, cache=False)
    assert max(sizes) == size
    again = run_tasks(
        model, tiny_tokenizer, dataclasses.replace(spec, batch_size=4), progress=False, cache=False
    )
    assert rows == again


def test_the_length_of_generations(ask, tiny_tokenizer):
    long, short = (
        ask(spec_of("tiny_words", gen_kwargs=kwargs))["text"] for kwargs in (None, {"max_gen_toks": 1})
    )
    count = lambda texts: max(len(tiny_tokenizer(text, add_special_tokens=False).input_ids) for text in texts)  # noqa: E731
    assert count(short) <= 1 < count(long)


def test_what_is_known_is_not_asked_again(tiny_model, tiny_tokenizer):
    model = tiny_model()

    def passes(spec, **options):
        with forwards(model) as sizes:
            rows = run_tasks(model, tiny_tokenizer, spec, progress=False, **options)
        return sum(sizes), rows

    spec = spec_of("tiny", "tiny_words", "tiny_texts")
    some, _ = passes(dataclasses.replace(spec, limit=2))
    rest, rows = passes(spec)
    assert some > 0
    assert rest > 0
    assert passes(spec) == (0, rows)
    assert passes(dataclasses.replace(spec, batch_size=2, limit=1))[0] == 0
    whole, uncached = passes(spec, cache=False)
    assert uncached == rows
    assert some < whole
    assert rest < whole, "the first two documents were not asked again"
    assert passes(dataclasses.replace(spec, tasks=["tiny_colours"], num_fewshot=1))[0] > 0
    assert passes(dataclasses.replace(spec, tasks=["tiny_words"], seed=1))[0] > 0
    with torch.no_grad():
        model.model.norm.weight *= 1.5
    assert passes(spec)[0] == whole


def test_samples_of_one_prompt_differ_and_are_kept_apart():
    """A prompt that is asked for three samples is sent three times, and gets its three answers back."""
    sent: list[str] = []

    def generate(requests, disable_tqdm):
        sent.extend(request.args[0] for request in requests)
        return [f"answer {len(sent) - len(requests) + i}" for i in range(len(requests))]

    from unlearnkit.evaluation.store import ResultStore

    lm = SimpleNamespace(generate_until=generate)
    kept = harness.KeptAnswers(lm, {harness.GENERATION: ResultStore("model")})
    requests = [SimpleNamespace(args=(prompt, {"until": []})) for prompt in ("a", "a", "b", "a")]
    assert kept.generate_until(requests) == ["answer 0", "answer 1", "answer 2", "answer 3"]
    assert kept.generate_until(requests[:2]) == ["answer 0", "answer 1"]
    assert sent == ["a", "a", "b", "a"]


def test_the_caller_is_left_alone(tiny_model, tiny_tokenizer, capfd, caplog):
    model = tiny_model().train()
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token = None
    random.seed(4711)  # no state that an earlier run of the tasks may have left
    np.random.seed(4711)
    torch.manual_seed(4711)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist())
    level = logging.getLogger("lm_eval").level
    with caplog.at_level(logging.INFO):
        run_tasks(model, tokenizer, spec_of("tiny", "tiny_words"), progress=False)
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist())
    assert after == before
    assert model.training
    assert tokenizer.pad_token is None
    assert logging.getLogger("lm_eval").level == level
    assert "lm_eval" not in {record.name.split(".")[0] for record in caplog.records}
    assert capfd.readouterr() == ("", "")


def test_progress_goes_to_the_terminal(tiny_model, tiny_tokenizer, capfd):
    run_tasks(tiny_model(), tiny_tokenizer, spec_of("tiny"), suite="capability/1")
    out, err = capfd.readouterr()
    assert out == ""
    assert "capability/1: tasks" in err
    assert "Running loglikelihood" not in err


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for call in (require, lambda: check(spec_of("tiny")), lambda: run_tasks(None, None, spec_of("tiny"))):
        with pytest.raises(UserError, match=r"pip install 'unlearnkit\[eval\]'"):
            call()


def test_a_package_that_is_too_old(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"lm_eval": "0.4.9.2"}[name])
    with pytest.raises(UserError, match=r"needs lm-evaluation-harness 0\.4\.12 or newer, found 0\.4\.9\.2"):
        require()


def test_the_module_needs_neither_torch_nor_lm_eval():
    code = (
        "import sys, unlearnkit.evaluation.capability; "
        "sys.exit('torch' in sys.modules or 'lm_eval' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode
        == 0
    )


@pytest.fixture
def only_ours(monkeypatch):
    """The whole list of lm-eval's tasks takes seconds to make; here it is ours alone."""
    from lm_eval import tasks

    whole = tasks.TaskManager
    monkeypatch.setattr(tasks, "TaskManager", lambda include_path, **_: whole(None, include_path, False))


@pytest.mark.usefixtures("only_ours")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (spec_of("tiny_colour"), "no task 'tiny_colour'; did you mean 'tiny_colours'"),
        (spec_of("tiny", "tiny-word"), "did you mean 'tiny_words'"),
        (spec_of(), "lm_eval.tasks is empty"),
        (TaskSpec(["tiny"], include_path="nowhere"), "there is no folder nowhere"),
    ],
)
def test_a_task_that_is_not_known_is_refused_without_a_model(spec, message):
    with pytest.raises(RecipeError, match=message):
        check(spec)


@pytest.mark.usefixtures("only_ours")
@pytest.mark.parametrize("tasks", [("tiny", "tiny_shapes"), ("tiny_choices", "tiny")])
def test_a_task_that_is_named_twice(ask, tasks):
    with pytest.raises(RecipeError, match=r"'tiny_(shapes|colours)' twice"):
        ask(spec_of(*tasks))


def test_a_folder_of_ones_own_does_not_list_all_tasks(monkeypatch):
    from lm_eval import tasks

    made: list[bool] = []
    whole = tasks.TaskManager

    def manager(**options):
        made.append(options.get("include_defaults", True))
        return whole(**options)

    monkeypatch.setattr(tasks, "TaskManager", manager)
    check(spec_of("tiny", "tiny_words"))
    check(TaskSpec(["mmlu", "wmdp"]))
    assert made == [False, False]


@pytest.mark.usefixtures("only_ours")
def test_a_tag_scores_all_its_tasks(ask):
    frame = ask(spec_of("tiny_choices"))
    assert set(frame["dataset"]) == {"tiny_choices/tiny_colours", "tiny_choices/tiny_shapes"}
    assert task_score(frame, dataset="tiny_choices").n == 10


def write_task(folder: Path, **changes: Any) -> TaskSpec:
    task = yaml.safe_load((FOLDER / "tiny_shapes.yaml").read_text()) | {"task": "mine"} | changes
    (folder / "mine.yaml").write_text(yaml.safe_dump(task))
    return TaskSpec(["mine"], include_path=str(folder))


def test_tasks_that_cannot_be_run(ask, tmp_path):
    spec = write_task(tmp_path, dataset_kwargs={"data_files": {"test": "absent.jsonl"}})
    with pytest.raises(DataError, match=r"task 'mine' cannot be loaded .*absent\.jsonl"):
        ask(spec)
    spec = write_task(tmp_path, dataset_path="nobody/nothing", dataset_kwargs={})
    with pytest.raises(UnreachableError, match="data of the task 'mine' cannot be reached"):
        ask(spec)
    spec = write_task(tmp_path, unsafe_code=True)
    with pytest.raises(RecipeError, match="runs code that the model writes"):
        ask(spec)
    spec = write_task(tmp_path, metric_list=[{"metric": "f1", "aggregation": "f1", "higher_is_better": True}])
    with pytest.raises(RecipeError, match="has only f1, which is no mean over documents"):
        ask(spec)
    spec = dataclasses.replace(spec_of("tiny_words"), gen_kwargs={"max_gen_toks": 9999})
    with pytest.raises(RecipeError, match=r"cannot run the task 'tiny_words' .*maximum sequence length"):
        ask(spec)


def test_metrics_that_are_no_means_are_left_out_beside_others(ask, tmp_path):
    metrics = [
        {"metric": name, "aggregation": how, "higher_is_better": True}
        for name, how in (("f1", "f1"), ("acc", "mean"))
    ]
    assert set(ask(write_task(tmp_path, metric_list=metrics))["field"]) == {"acc"}


def test_a_model_that_gives_no_numbers(tiny_model, tiny_tokenizer):
    """Of four NaN the first choice would be the best one: a score without a meaning."""
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    for task in ("tiny_colours", "tiny_texts"):
        with pytest.raises(ModelError, match=rf"document 0 of the task {task} .* is not a number"):
            run_tasks(model, tiny_tokenizer, spec_of(task), progress=False)


def test_out_of_memory_halves_the_batch(tiny_model, tiny_tokenizer, caplog, monkeypatch):
    model, most = tiny_model(), 2

    def narrow(_, args):
        if len(args[0]) > most:
            raise torch.OutOfMemoryError("no")

    spec = spec_of("tiny_colours", batch_size=8)
    expected = run_tasks(model, tiny_tokenizer, spec, progress=False, cache=False)
    hook = model.register_forward_pre_hook(narrow)
    assert run_tasks(model, tiny_tokenizer, spec, progress=False, cache=False) == expected
    assert "batch_size 8; went on with batches of 4" in caplog.text
    assert "batch_size 4; went on with batches of 2" in caplog.text
    most = 0
    with pytest.raises(ModelError, match="in batches of 1"):
        run_tasks(model, tiny_tokenizer, spec, progress=False, cache=False)
    hook.remove()


def test_processes_share_the_tasks(tiny_model, tiny_tokenizer, monkeypatch):
    """Each of two processes runs some tasks; what they gather has the rows and the order of one process."""
    spec = spec_of("tiny", "tiny_words", "tiny_texts")
    rows = run_tasks(tiny_model(), tiny_tokenizer, spec, progress=False)
    parts: list[Any] = []
    monkeypatch.setattr(harness, "gathered", lambda value: parts.append(value) or [value])
    for rank in range(2):
        for module in (harness, capability):
            monkeypatch.setattr(module, "processes", lambda rank=rank: (rank, 2))
        run_tasks(tiny_model(), tiny_tokenizer, spec, progress=False)
    assert [len(found) for found, _ in parts] == [2, 2]
    monkeypatch.setattr(harness, "gathered", lambda value: parts)
    assert run_tasks(tiny_model(), tiny_tokenizer, spec, progress=False) == rows


def test_an_adapter_is_asked_like_its_merged_model(tiny_model, tiny_tokenizer):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(
        tiny_model(), LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj"])
    )
    spec = spec_of("tiny", "tiny_words", "tiny_texts")
    with forwards(adapted.base_model.model) as sizes:
        rows = new_records(run_tasks(adapted, tiny_tokenizer, spec, progress=False))
    assert sizes
    merged = new_records(
        run_tasks(adapted.merge_and_unload(), tiny_tokenizer, spec, progress=False, cache=False)
    )
    assert list(rows["text"]) == list(merged["text"])
    np.testing.assert_allclose(rows["value"], merged["value"], rtol=1e-5)
    plain = new_records(run_tasks(tiny_model(), tiny_tokenizer, spec, progress=False))
    assert not np.allclose(rows["value"], plain["value"], rtol=1e-5)


def test_the_fault_of_one_process_stops_all(monkeypatch):
    for module in (harness, capability):
        monkeypatch.setattr(module, "processes", lambda: (0, 2))
    monkeypatch.setattr(harness, "gathered", lambda value: [value, ({}, "out of luck")])
    with pytest.raises(UserError, match="process 1: out of luck"):
        harness.shared({0: []}, None, False)
    with pytest.raises(ModelError, match="mine"):
        harness.shared({}, ModelError("mine"), False)


def test_the_shipped_suite_names_tasks_that_lm_eval_has():
    document = read_document(SUITE)
    spec = Reader(document).section(TaskSpec, document.values["lm_eval"], ("lm_eval",))
    document.raise_problems()
    manager = lm_tasks.task_manager(spec)
    for name, metric in document.values["metrics"].items():
        assert metric["kind"] in KINDS
        assert metric["dataset"] == name
        assert name in manager.all_tasks, "a group or a task of the narrowed list"
        assert metric["group"] == "capability"


def test_a_metric_for_each_task():
    metrics = metrics_for(["mmlu", "tiny-group::one"], TaskSpec(num_fewshot=5))
    assert metrics == {
        "mmlu": {"kind": "task_score", "dataset": "mmlu", "group": "capability", "title": "mmlu (5-shot)"},
        "tiny_group_one": {
            "kind": "task_score", "dataset": "tiny-group::one", "group": "capability",
            "title": "tiny-group::one (5-shot)",
        },
    }  # fmt: skip
    assert metrics_for(["mmlu"], TaskSpec())["mmlu"]["title"] == "mmlu"


def test_settings_are_checked_like_those_of_a_recipe(tmp_path):
    (tmp_path / "suite.yaml").write_text("lm_eval: {task: [mmlu], batch_size: 0, apply_chat_template: 3}")
    document = read_document(tmp_path / "suite.yaml")
    assert Reader(document).section(TaskSpec, document.values["lm_eval"], ("lm_eval",)) is None
    with pytest.raises(UserError) as caught:
        document.raise_problems()
    assert "did you mean 'tasks'" in str(caught.value)
    assert "lm_eval.batch_size must be at least 1" in str(caught.value)
    assert "apply_chat_template must be true or false or text" in str(caught.value)
    assert capability.TaskSpec().batch_size == 8


def test_the_narrowed_list_is_used_only_where_it_is_whole():
    """A tag may have members in other folders; a group may define tasks, or name some that are elsewhere."""

    def entry(kind, *members):
        return SimpleNamespace(kind=SimpleNamespace(name=kind), cfg={"task": list(members)})

    index = {"a": entry("TASK"), "g": entry("GROUP", "a", "t"), "t": entry("TAG"), "gg": entry("GROUP", "g")}
    index |= {"away": entry("GROUP", "gg", "b"), "inline": entry("GROUP", {"task": "a"})}
    whole = {name for name in [*index, "b"] if lm_tasks._is_whole(index, [name])}
    assert whole == {"a", "g", "gg"}
    assert not lm_tasks._is_whole(index, ["a", "away"])
