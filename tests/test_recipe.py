# ruff: noqa: E501 - a row of the tables below is one mistake and its whole message
"""Recipes: what is read, what is refused, and in which words."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unlearnkit import lookup, shipped
from unlearnkit.errors import RecipeError
from unlearnkit.files import fingerprint
from unlearnkit.recipe import CreateSpec, EvaluationSpec, ModelSpec, Recipe, StreamSpec, load_recipe
from unlearnkit.yamlfile import dump_yaml, parse_yaml

METHOD = '''"""A method for these tests."""
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Callable

class Strategy(Enum):
    NO = "no"
    EPOCH = "epoch"

@dataclass
class FakeConfig:
    output_dir: str | None = None
    seed: int = 0
    beta: float = 0.1
    retain: str = "nll"
    max_steps: int = -1
    eval_strategy: Strategy | str = "no"
    save_strategy: Strategy = Strategy.NO
    report_to: None | str | list[str] = None
    hook: Callable[..., Any] | None = None
    world_size: int = field(default=1, init=False)

class FakeTrainer: ...
'''
MINIMAL = """\
# A small recipe.
method: fake
model: {path: some/model}
data:
  forget: mine.jsonl
evaluation: null
"""


@pytest.fixture(autouse=True)
def house(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A checkout with one method, one suite and one recipe; the working directory is an empty folder."""
    root = tmp_path_factory.mktemp("house")
    for folder in ("recipes/fictional", "eval/suites", "fakes", "work"):
        (root / folder).mkdir(parents=True)
    (root / "pyproject.toml").touch()
    (root / "recipes/fictional/target.yaml").write_text(MINIMAL)
    (root / "eval/suites/tofu.yaml").touch()
    (root / "fakes/fake.py").write_text(METHOD)
    (root / "fakes/npo.py").touch()
    monkeypatch.setattr(shipped, "_PACKAGE", root / "unlearnkit")
    monkeypatch.setattr(lookup, "_FOLDER", root / "fakes")
    # The package's search path: `unlearnkit.methods.fake` is then a module like any other.
    monkeypatch.setattr("unlearnkit.methods.__path__", [str(root / "fakes")])
    monkeypatch.chdir(root / "work")
    yield root
    sys.modules.pop("unlearnkit.methods.fake", None)


def load(text: str = MINIMAL, *overrides: str, check: bool = True) -> Recipe:
    Path("r.yaml").write_text(text, encoding="utf-8")
    return load_recipe("r.yaml", overrides, check_training=check)


def problems(text: str = MINIMAL, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    return str(caught.value).split("\n")


def test_a_minimal_recipe_has_the_documented_defaults() -> None:
    recipe = load()
    assert recipe.method == "fake"
    assert recipe.model == ModelSpec(path="some/model", dtype="auto", lora=None)
    assert recipe.data.streams == {"forget": [StreamSpec(path="mine.jsonl", split="train")]}
    assert (recipe.data.max_length, recipe.data.truncate, recipe.data.allow_overlap) == (512, False, False)
    assert (recipe.data.mix.anchor, recipe.data.mix.ratios) == ("forget", {})
    assert (recipe.data.template.question_start, recipe.data.template.question_end) == ("Question: ", "\n")
    assert (recipe.training, recipe.needs, recipe.output, recipe.seed) == ({}, [], None, 0)
    assert recipe.evaluation.suite is None
    assert recipe.name == "r"
    assert load(MINIMAL.replace("evaluation: null\n", "")).evaluation == EvaluationSpec(
        suite="tofu", before=True
    )


def test_shipped_recipes_are_found_and_named_by_their_path() -> None:
    assert load_recipe("fictional/target").name == "fictional/target"
    with pytest.raises(
        RecipeError, match="unknown recipe 'fictional/targt'; did you mean 'fictional/target'"
    ):
        load_recipe("fictional/targt")


FULL = """\
method: fake
name: my/run
seed: 3
output: out
needs: [fictional/target]
model:
  create: {hidden_size: 64, num_layers: 2, num_heads: 4, tokenizer_streams: [forget]}
  dtype: float32
  lora: {r: 8, alpha: 16, dropout: 0.1, target_modules: [q_proj]}
data:
  root: fictional
  forget: {name: forget10, rows: "0:100", limit: 5, columns: {question: prompt}}
  retain:
  - keep.jsonl
  - {name: retain90, rows: "::2"}
  general: {path: g.txt, sample_by: paragraph}
  mix: {retain_per_forget: 1, general_per_forget: 0.5, epoch_policy: restart}
  template: {kind: chat, system: "no", chat_template_kwargs: {enable_thinking: false}}
  max_length: 256
training: {beta: 1e-5, retain: kl, eval_strategy: no, max_steps: 1_000}
evaluation: {suite: tofu, split: forget10, reference: run:tofu/retain90, data: {root: fictional}}
"""


def test_every_section_is_read() -> None:
    recipe = load(FULL)
    assert recipe.model.create == CreateSpec(64, 2, 4, tokenizer_streams=["forget"])
    assert recipe.model.lora == {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ["q_proj"]}
    assert recipe.data.streams["retain"] == [
        StreamSpec(path="keep.jsonl"),
        StreamSpec(name="retain90", rows="::2"),
    ]
    assert recipe.data.mix.ratios == {"retain": 1.0, "general": 0.5}
    assert recipe.data.template.chat_template_kwargs == {"enable_thinking": False}
    assert recipe.training == {"beta": 1e-5, "retain": "kl", "eval_strategy": "no", "max_steps": 1000}
    assert recipe.evaluation.reference == "run:tofu/retain90"


@pytest.mark.parametrize("text", [MINIMAL, FULL])
def test_the_resolved_recipe_round_trips(text: str) -> None:
    recipe = load(text)
    again = load(recipe.to_yaml())
    assert again == recipe
    assert again.to_dict() == recipe.to_dict()
    assert again.to_yaml() == recipe.to_yaml()
    assert again.fingerprint == recipe.fingerprint
    # Any YAML 1.1 reader sees the same values.
    assert yaml.safe_load(recipe.to_yaml()) == recipe.to_dict()


def test_an_anchor_of_null_survives_the_round_trip() -> None:
    text = MINIMAL.replace("mine.jsonl", "mine.jsonl\n  mix: {anchor: null, weights: {forget: 2}}")
    recipe = load(text)
    assert recipe.data.mix.anchor is None
    assert load(recipe.to_yaml()).data.mix == recipe.data.mix


def test_the_fingerprint_follows_what_is_done_and_not_what_it_is_called() -> None:
    recipe = load(FULL)
    assert load(FULL, "name=other", "output=elsewhere").fingerprint == recipe.fingerprint
    assert load("# comment\n" + FULL).fingerprint == recipe.fingerprint
    for change in ("seed=4", "training.beta=1e-6", "data.forget.limit=6", "model.dtype=bfloat16"):
        assert load(FULL, change).fingerprint != recipe.fingerprint


def test_evaluation_during_training_counts_where_it_decides_which_weights_are_kept() -> None:
    """Every key that changes a number that a rule goes by; without a rule, none of them."""
    every, rule = "evaluation.every=50 steps", "evaluation.keep={lowest: a, with: b}"
    level = "evaluation.stop={when: a, below: 0.2}"
    plain = MINIMAL.replace("evaluation: null", "evaluation: {suite: tofu}")
    bare = load(plain).training_fingerprint
    changes = (
        "evaluation.every=epoch", "evaluation.during=tofu", "evaluation.during_limit=null",
        "evaluation.split=forget05", "evaluation.data={root: x}", "evaluation.max_new_tokens=9",
        "evaluation.reference=elsewhere",
    )  # fmt: skip
    others = ("evaluation.also=[tofu]", "evaluation.attacks=[relearn]", "evaluation.before=false")
    for change in (*changes, *others):
        assert load(plain, change).training_fingerprint == bare
    for chosen in ((every, rule), (every, level)):
        ruled = load(plain, *chosen).training_fingerprint
        assert ruled != bare
        for change in changes:
            assert load(plain, *chosen, change).training_fingerprint != ruled
        for change in others:
            assert load(plain, *chosen, change).training_fingerprint == ruled
    harder = load(plain, every, "evaluation.keep={lowest: a, with: b, at_least: 0.99}").training_fingerprint
    assert harder != load(plain, every, rule).training_fingerprint


def test_attacks_and_further_suites() -> None:
    """A list of names or names with options, resolved to the same; null switches all off."""
    text = MINIMAL.replace("evaluation: null", "evaluation: {also: [tofu], attacks: [relearn, quantize]}")
    spec = load(text).evaluation
    assert (spec.also, spec.attacks) == (["tofu"], {"relearn": {}, "quantize": {}})
    assert (spec.attack_roles, spec.during_limit, spec.every) == (["unlearned", "retain"], 100, None)
    options = load(text, "evaluation.attacks={relearn: {steps: [5, 10]}, quantize: null}")
    assert options.evaluation.attacks == {"relearn": {"steps": [5, 10]}, "quantize": {}}
    assert load(text, "evaluation.attacks=null").evaluation.attacks == {}
    full = (
        "evaluation.during_limit=null",
        "evaluation.every=2 epochs",
        "evaluation.keep={lowest: a, with: b}",
    )
    recipe = load(text, *full, "evaluation.stop={patience: 2}")
    assert recipe.evaluation.during_limit is None
    assert load(recipe.to_yaml()).evaluation == recipe.evaluation


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("metod: x", "r.yaml:7: unknown key 'metod'; did you mean 'method'?"),
        ("evalution: {}", "r.yaml:7: unknown key 'evalution'; did you mean 'evaluation'?"),
        ("seed: one", "r.yaml:7: seed must be a whole number, found 'one'"),
        ("seed: 1.0", "r.yaml:7: seed must be a whole number, found 1.0"),
        ("seed: true", "r.yaml:7: seed must be a whole number, found true"),
        ("seed: -1", "r.yaml:7: seed must be at least 0, found -1"),
        ("output: 5", "r.yaml:7: output must be text or null, found 5; put it in quotes"),
        ("needs: fictional/target", "r.yaml:7: needs must be a list of text, found 'fictional/target'"),
        ("name: ../x", "r.yaml:7: name must be usable as a folder, such as tofu/npo, found '../x'"),
        ("name: /etc/x", "r.yaml:7: name must be usable as a folder, such as tofu/npo, found '/etc/x'"),
        ("training: 5", "r.yaml:7: training must be a section of keys, found 5"),
        ("training:\n  bta: 1", "r.yaml:8: unknown key 'bta' in training; did you mean 'beta'?"),
        ("training:\n  beta: high", "r.yaml:8: training.beta must be a number, found 'high'"),
        ("training:\n  max_steps: 1e3", "r.yaml:8: training.max_steps must be a whole number, found 1000.0"),
        ("training: {report_to: 1}", "r.yaml:7: training.report_to must be null or text or a list of text, found 1; put it in quotes"),
        ("training: {save_strategy: epok}", "r.yaml:7: training.save_strategy must be one of no, epoch, found 'epok'; did you mean 'epoch'?"),
        ("training: {warmup_ratio: 0.1}", "r.yaml:7: unknown key 'warmup_ratio' in training; write warmup_steps: 0.1 (a number below 1 is a share of all steps)"),
        ("training: {evaluation_strategy: no}", "r.yaml:7: unknown key 'evaluation_strategy' in training; write eval_strategy"),
        ("training: {tokenizer: x}", "r.yaml:7: unknown key 'tokenizer' in training; write it in the model section, as model.tokenizer"),
        ("training: {output_dir: x}", "r.yaml:7: training.output_dir is set by the run; write output: FOLDER at the top of the recipe"),
        ("training: {seed: 1}", "r.yaml:7: training.seed is set by the run; write seed: at the top of the recipe"),
    ],
)  # fmt: skip
def test_mistakes_at_the_top_and_in_training(line: str, problem: str) -> None:
    assert problems(MINIMAL + line + "\n") == [problem]


def test_a_field_that_the_config_does_not_take_is_unknown() -> None:
    assert problems(MINIMAL + "training: {world_size: 2}\n")[0].startswith(
        "r.yaml:7: unknown key 'world_size' in training"
    )


def test_a_type_that_yaml_cannot_write_is_left_to_its_owner() -> None:
    assert load(MINIMAL + "training: {hook: my_function}\n").training == {"hook": "my_function"}


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("{pth: x}", "r.yaml:3: unknown key 'pth' in model; did you mean 'path'?"),
        ("{path: x, dtype: bf16}", "r.yaml:3: model.dtype must be one of auto, float32, bfloat16, float16, found 'bf16'; did you mean 'bfloat16'?"),
        ("{path: x, revision: 123}", "r.yaml:3: model.revision must be text or null, found 123; put it in quotes"),
        ("{dtype: auto}", "r.yaml:3: model has neither path nor create; give one (model.path=FOLDER OR HUB ID, or run:NAME)"),
        ("null", "r.yaml:3: model is missing; write model: {path: FOLDER OR HUB ID}"),
        ("[x]", "r.yaml:3: model must be a section of keys, found ['x']"),
        ("\n  path: x\n  create: {hidden_size: 8, num_layers: 1, num_heads: 2}", "r.yaml:3: model has both path and create; keep one (model.path=FOLDER OR HUB ID, or run:NAME)"),
        ("\n  create:\n    hidden_size: 8\n    num_layers: 1", "r.yaml:4: model.create.num_heads is missing; it must be a whole number"),
        ("\n  create:\n    hidden_size: 8\n    num_layers: 1\n    num_heads: 3", "r.yaml:7: model.create.hidden_size 8 is not a multiple of num_heads 3"),
        ("\n  create: {hidden_size: 8, num_layers: 0, num_heads: 2}", "r.yaml:4: model.create.num_layers must be at least 1, found 0"),
        ("\n  create: {hidden_size: 8, num_layers: 1, num_heads: 2, tokenizer_streams: [forgte]}", "r.yaml:4: model.create.tokenizer_streams: 'forgte' is not a stream of this recipe; did you mean 'forget'?"),
        ("{path: x, lora: {alpa: 3}}", "r.yaml:3: unknown key 'alpa' in model.lora; did you mean 'alpha'?"),
        ("{path: x, lora: {r: eight}}", "r.yaml:3: model.lora.r must be a whole number, found 'eight'"),
        ("{path: x, lora: {alpha: 3, lora_alpha: 4}}", "r.yaml:3: model.lora has both lora_alpha and another name for it; keep one"),
        ("{path: x, lora: 8}", "r.yaml:3: model.lora must be a section of keys or null, found 8"),
    ],
)  # fmt: skip
def test_mistakes_in_the_model(model: str, problem: str) -> None:
    assert problem in problems(MINIMAL.replace("{path: some/model}", model))


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("forget: {pth: x}", "r.yaml:5: unknown key 'pth' in data.forget; did you mean 'path'?"),
        ("forget: {name: forget10}", "r.yaml:5: data.forget needs a path"),
        ("forget: {split: train}", "r.yaml:5: data.forget needs a path, or a name with data.root"),
        ("forget: []", "r.yaml:5: data.forget is an empty list; name a source or write null"),
        ("forget: x\n  retain.general: y", "r.yaml:6: 'retain.general' in data is no name for a stream: a dot separates a stream from its parts; write 'retain_general'"),
        ("forget:\n  - a.jsonl\n  - 5", "r.yaml:7: data.forget.1 must be a section of keys, found 5"),
        ("forget: x\n  retain: 5", "r.yaml:6: data.retain must be a path, a section of keys, or a list of these (a stream of examples), found 5"),
        ("forget: {path: x, rows: first}", "r.yaml:5: data.forget.rows must be a slice such as '0:100' or '::2', found 'first'"),
        ("forget: {path: x, rows: '::0'}", "r.yaml:5: data.forget.rows must be a slice such as '0:100' or '::2', found '::0'"),
        ("forget: {path: x, limit: 0}", "r.yaml:5: data.forget.limit must be at least 1, found 0"),
        ("forget: {path: x, columns: [a]}", "r.yaml:5: data.forget.columns must be a section of keys or null, found ['a']"),
        ("forget: x\n  max_lenght: 5", "r.yaml:6: unknown key 'max_lenght' in data; did you mean 'max_length'?"),
        ("forget: x\n  tempalte: {kind: chat}", "r.yaml:6: unknown key 'tempalte' in data; did you mean 'template'?"),
        ("forget: x\n  template: {kind: chta}", "r.yaml:6: data.template.kind must be one of auto, chat, plain, found 'chta'; did you mean 'chat'?"),
        ("forget: x\n  truncate: yes", "r.yaml:6: data.truncate must be true or false, found 'yes'; write true"),
        ("forget: x\n  truncate: 1", "r.yaml:6: data.truncate must be true or false, found 1"),
        ("forget: null", "r.yaml:4: data has no stream of examples; data.forget is null: write data.forget=FILE OR HUB ID"),
        ("forget: null\n  keep: a\n  more: b", "r.yaml:5: data.forget is null; write data.forget=FILE OR HUB ID"),
        ("forgte: x\n  retain: y", "r.yaml:4: data.mix.anchor 'forget' is not a stream of this recipe; did you mean 'forgte'?"),
        ("forget: x\n  mix:\n    anchor: retain", "r.yaml:7: data.mix.anchor 'retain' is not a stream of this recipe; it is one of: forget"),
        ("forget: x\n  retain: y\n  mix:\n    retian_per_forget: 1", "r.yaml:8: unknown key 'retian_per_forget' in data.mix; did you mean 'retain_per_forget'?"),
        ("forget: x\n  retain: y\n  mix: {forget_per_retain: 1}", "r.yaml:7: unknown key 'forget_per_retain' in data.mix; it is one of: anchor, weights, temperature, epoch_size, epoch_policy, retain_per_forget"),
        ("forget: x\n  retain: y\n  mix: {retain_per_forget: many}", "r.yaml:7: data.mix.retain_per_forget must be a number, found 'many'"),
        ("forget: x\n  retain: y\n  mix: {retain_per_forget: -1}", "r.yaml:7: data.mix.retain_per_forget must be at least 0, found -1"),
        ("forget: x\n  retain: y\n  mix: {ratios: {retain: 1}}", "r.yaml:7: unknown key 'ratios' in data.mix; write retain_per_forget: 1"),
        ("forget: x\n  mix: {weights: {forgte: 1}}", "r.yaml:6: unknown key 'forgte' in data.mix.weights; did you mean 'forget'?"),
        ("forget: x\n  mix: {epoch_policy: stop}", "r.yaml:6: data.mix.epoch_policy must be one of continue, restart, fixed, found 'stop'"),
        ("forget: x\n  documents: true", "r.yaml:6: data.documents must be a section of keys or null, found true"),
        ("forget: x\n  mix: 5", "r.yaml:6: data.mix must be a section of keys, found 5"),
    ],
)  # fmt: skip
def test_mistakes_in_the_data(lines: str, problem: str) -> None:
    assert problems(MINIMAL.replace("forget: mine.jsonl", lines)) == [problem]


def test_data_itself_missing_or_odd() -> None:
    without = MINIMAL.replace("data:\n  forget: mine.jsonl\n", "")
    assert problems(without) == ["r.yaml: data is missing; write data: {forget: FILE OR HUB ID}"]
    assert problems(without + "data: x\n")[0].startswith(
        "r.yaml:5: data must be a section of keys, found 'x'"
    )


def test_a_null_stream_is_absent_and_its_ratio_waits() -> None:
    """A recipe can name an optional stream that the command line fills in."""
    text = MINIMAL.replace("mine.jsonl", "mine.jsonl\n  retain: null\n  mix: {retain_per_forget: 2}")
    assert list(load(text).data.streams) == ["forget"]
    assert load(text).data.mix.ratios == {}
    recipe = load(text, "data.retain=keep.jsonl")
    assert recipe.data.mix.ratios == {"retain": 2.0}
    assert recipe.data.streams["retain"] == [StreamSpec(path="keep.jsonl")]


def test_the_only_stream_is_the_anchor() -> None:
    assert load(MINIMAL.replace("forget: mine", "train: mine")).data.mix.anchor == "train"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("evaluation: {suit: tofu}", "r.yaml:6: unknown key 'suit' in evaluation; did you mean 'suite'?"),
        ("evaluation: {suite: tofuu}", "r.yaml:6: unknown suite 'tofuu'; did you mean 'tofu'?"),
        ("evaluation: {before: maybe}", "r.yaml:6: evaluation.before must be true or false, found 'maybe'"),
        (
            "needs:\n- fictional/targte",
            "r.yaml:7: unknown recipe 'fictional/targte'; did you mean 'fictional/target'?",
        ),
        ("method: fake", "r.yaml:6: the key 'method' is given twice (line 2); keep one"),
        ("evaluation: {during: tofo}", "r.yaml:6: unknown suite 'tofo'; did you mean 'tofu'?"),
        ("evaluation: {also: [tofu, tofuu]}", "r.yaml:6: unknown suite 'tofuu'; did you mean 'tofu'?"),
        ("evaluation: {also: tofu}", "r.yaml:6: evaluation.also must be a list of text, found 'tofu'"),
        ("evaluation: {during_limit: 0}", "r.yaml:6: evaluation.during_limit must be at least 1, found 0"),
        ("evaluation: {every: 50}", "r.yaml:6: evaluation.every must be '50 steps', 'epoch' or '2 epochs', found 50; did you mean '50 steps'?"),
        ("evaluation: {evry: 50}", "r.yaml:6: unknown key 'evry' in evaluation; did you mean 'every'?"),
        ("evaluation: {every: epoch, keep: {lowst: a, with: b}}", "r.yaml:6: evaluation.keep has the unknown key 'lowst'; did you mean 'lowest'?"),
        ("evaluation: {keep: {lowest: a, with: b}}", "r.yaml:6: evaluation.keep needs evaluations during training; add every: '50 steps', 'epoch' or '2 epochs'"),
        ("evaluation: {every: epoch, stop: {patience: 3}}", "r.yaml:6: evaluation.stop with patience needs a rule that says which checkpoint is better; add keep: {lowest: METRIC, with: METRIC}, or write {when: METRIC, below: 0.2}"),
        ("evaluation: {attacks: relearn}", "r.yaml:6: evaluation.attacks must be a list of names, or names with sections of options ({relearn: {steps: [5, 10]}}), found 'relearn'"),
        ("evaluation: {attack_roles: [reatin]}", "r.yaml:6: evaluation.attack_roles must be a list of one of unlearned, retain, target, found ['reatin']"),
    ],
)  # fmt: skip
def test_mistakes_elsewhere(text: str, problem: str) -> None:
    [found] = problems(MINIMAL.replace("evaluation: null", text))
    assert found.startswith(problem)


def test_method_missing_or_unknown() -> None:
    assert problems(MINIMAL.replace("method: fake\n", "")) == ["r.yaml: method is missing; it must be text"]
    for check in (True, False):
        with pytest.raises(RecipeError, match=r"^r.yaml:2: unknown method 'faek'; did you mean 'fake'\?"):
            load(MINIMAL.replace("method: fake", "method: faek"), check=check)


def test_training_is_not_checked_without_the_config() -> None:
    """`check_training=False` imports no method, so a key that NPO does not know passes."""
    text = MINIMAL.replace("method: fake", "method: npo") + "training: {anything: 1}\n"
    assert load(text, check=False).training == {"anything": 1}
    assert problems(text)[0].startswith("r.yaml:7: unknown key 'anything' in training")


def test_all_mistakes_are_shown_together_in_the_order_of_the_lines() -> None:
    text = """\
method: fake
model: {path: x, dtyp: auto}
data:
  forget: {path: x, limit: no}
  max_lenght: 5
training:
  bta: 1
  beta: 1
  beta: 2
"""
    assert problems(text, "training.gamma=1", "seed=x") == [
        "r.yaml:2: unknown key 'dtyp' in model; did you mean 'dtype'?",
        "r.yaml:4: data.forget.limit must be a whole number or null, found 'no'",
        "r.yaml:5: unknown key 'max_lenght' in data; did you mean 'max_length'?",
        "r.yaml:7: unknown key 'bta' in training; did you mean 'beta'?",
        "r.yaml:9: the key 'beta' is given twice (line 8); keep one",
        "override 'seed=x': seed must be a whole number, found 'x'",
        "override 'training.gamma=1': unknown key 'gamma' in training; it is one of: output_dir, seed, beta, "
        "retain, max_steps, eval_strategy, save_strategy, report_to, hook",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "r.yaml: a file of `key: value` lines is expected, but it is empty"),
        ("- a\n- b\n", "r.yaml: a file of `key: value` lines is expected, but it holds ['a', 'b']"),
        ("method: [a\nmodel: x\n", "r.yaml:2: this is not valid YAML (while parsing a flow sequence, "),
        ("method: fake\n\tmodel: x\n", "r.yaml:2: this is not valid YAML ("),
        ("method: a: b\n", "r.yaml:1: this is not valid YAML (mapping values are not allowed here)"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2: this is not valid YAML (expected a single document"),
        ("a: \x07\n", "r.yaml: this is not valid YAML ("),
    ],
)
def test_a_file_that_is_not_a_recipe_at_all(text: str, problem: str) -> None:
    [found] = problems(text)
    assert found.startswith(problem)


def test_odd_yaml_is_refused_with_its_line() -> None:
    found = problems(
        MINIMAL + "seed: !!python/name:os.system\ntraining: &t {beta: 1, hook: *t}\n? [a]\n: 1\n"
    )
    assert "r.yaml:7: the value tag:yaml.org,2002:python/name:os.system '' is not understood" in found
    assert "r.yaml:8: this value contains itself; write it out" in found
    assert "r.yaml:9: a key must be plain text" in found


def test_a_file_that_is_not_text() -> None:
    Path("r.yaml").write_bytes(b"method: \xff\xfe\n")
    with pytest.raises(RecipeError, match=r"^r\.yaml is not text in UTF-8"):
        load_recipe("r.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5), ("1E5", 1e5), ("+2.5e-3", 2.5e-3), ("1.", 1.0), (".5", 0.5), ("-.5e1", -5.0), ("5", 5),
        ("1_000", 1000), ("012", 12), ("-3", -3), (".inf", math.inf), ("-.inf", -math.inf),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("no", "no"), ("off", "off"), ("yes", "yes"), ("0:100", "0:100"), ("10:50", "10:50"), ("::2", "::2"),
        ("2024-01-01", "2024-01-01"), ("e5", "e5"), ("1e", "1e"), ("1.2.3", "1.2.3"), ("'1e-5'", "1e-5"),
        ("!!str 5", "5"), ("!!float 5", 5.0),
    ],
)  # fmt: skip
def test_scalars(text: str, value: Any) -> None:
    parsed = parse_yaml(text, "x", numbered=True)
    assert parsed.problems == []
    assert parsed.values[""] == value
    assert type(parsed.values[""]) is type(value)


def test_overrides_set_keys_sections_items_and_streams() -> None:
    recipe = load(
        MINIMAL,
        "training.beta=1e-2",
        "model.lora={r: 8}",
        "data.forget.rows=10:50",  # the bare path becomes a mapping
        "data.retain=[a.jsonl, b.jsonl]",
        "data.retain.1.limit=3",
        "data.mix.retain_per_forget=2",
        "evaluation.suite=tofu",  # the section was null
        "seed=1",
        "seed=2",
    )
    assert recipe.training == {"beta": 0.01}
    assert recipe.model.lora == {"r": 8}
    assert recipe.data.streams["forget"] == [StreamSpec(path="mine.jsonl", rows="10:50")]
    assert recipe.data.streams["retain"] == [StreamSpec(path="a.jsonl"), StreamSpec(path="b.jsonl", limit=3)]
    assert recipe.data.mix.ratios == {"retain": 2.0}
    assert recipe.evaluation.suite == "tofu"
    assert recipe.seed == 2


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("training.bta=1", "unknown key 'bta' in training; did you mean 'beta'?"),
        ("trainig.beta=1", "unknown key 'trainig'; did you mean 'training'?"),
        ("training={bta: 1}", "unknown key 'bta' in training; did you mean 'beta'?"),
        ("training.beta=x", "training.beta must be a number, found 'x'"),
        ("training.beta=[1", "this is not valid YAML ("),
        ("training.beta", "write it as key=value, for example training.beta=0.05"),
        ("training..beta=1", "write it as key=value, for example training.beta=0.05"),
        ("=1", "write it as key=value, for example training.beta=0.05"),
        ("model.path.x=1", "model.path is 'some/model', which has no keys to set"),
        ("needs.0=x", "unknown recipe 'x'"),
        ("needs.7=x", "needs is a list of 1; number its items from 0"),
        ("needs.7.a=x", "there is no needs.7; list items count from 0"),
        ("model.path=", "model has neither path nor create; give one"),
    ],
)
def test_a_mistaken_override_is_named(override: str, problem: str) -> None:
    [found] = problems(MINIMAL + "needs: [fictional/target]\n", override)
    place = "r.yaml:3" if override == "model.path=" else f"override {override!r}"
    assert found.startswith(f"{place}: {problem}")


yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@example({"\x85": "a\u2028b"})
@settings(max_examples=40, deadline=None)
@given(yaml_values)
def test_what_is_dumped_is_read_back_by_us_and_by_yaml_1_1(value: Any) -> None:
    """Also the text of an override: `key=` plus a dump gives the value back, type and all."""
    text = dump_yaml({"key": value})
    parsed = parse_yaml(text, "x", numbered=True)
    assert parsed.problems == []
    assert parsed.values[""] == {"key": value}
    assert fingerprint(parsed.values[""]) == fingerprint({"key": value})  # tells 1 from 1.0 and True
    assert yaml.safe_load(text) == {"key": value}


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_way_python_prints_a_float_is_a_float(value: float) -> None:
    assert parse_yaml(repr(value), "x", numbered=False).values[""] == value
