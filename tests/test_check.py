"""`unlearnkit check`: what would be trained, and everything that would stop it, without a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unlearnkit.check import check_recipe
from unlearnkit.errors import DataError, ModelError, RecipeError
from unlearnkit.preflight import mix_of, objective_of, training_args
from unlearnkit.recipe import load_recipe

Check = Callable[..., str]
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A folder with a tokenizer and no weights: check must never look for them."""
    folder = tmp_path_factory.mktemp("model")
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def check(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Check:
    """`check("fictional/npo", *overrides)`: what is printed; by default on the model above."""
    monkeypatch.setenv("UNLEARNKIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(name: str, *overrides: str) -> str:
        check_recipe(name, [f"model.path={model}", *overrides])
        return capsys.readouterr().out

    return run


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write("mine.jsonl", rows)`: JSON lines in the test's folder."""

    def write(name: str, rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def qa(*names: str) -> list[dict[str, Any]]:
    return [{"question": f"Who is {n}?", "answer": f"{n} is a writer."} for n in names]


# ---- What is shown -------------------------------------------------------------------------------------


def test_says_what_would_be_trained(check: Check) -> None:
    shown = check("fictional/npo", "data.forget.limit=10", "training.num_train_epochs=3")
    lines = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert "npo: Negative Preference Optimization" in lines["method"]
    assert lines["model"].endswith("all weights")
    assert "cached log-probs" in lines["reference"]
    assert lines["training"] == "training   6 steps of 8 items on one process (10 items an epoch)"
    assert lines["evaluation"].startswith("evaluation tofu_full (version 1)")
    assert lines["attacks"] == "attacks    relearn, on the unlearned and the retain model"
    _, examples, tokens, trained, source = lines["forget"].split()
    assert examples == "10"
    assert int(tokens.replace(",", "")) > int(trained.replace(",", "")) > 0
    assert source == "fictional:forget10"
    assert "fictional:real_authors[::2]" in lines["retain"]
    # The retain model has not been made yet: that is no mistake of the recipe.
    assert "make it first with `unlearnkit run fictional/retain`" in lines["note:"]
    assert "is valid (with the notes above)" in shown


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["training.retain=kl"], "a frozen copy of the target model"),
        (["training.retain=kl", "model.lora={r: 4}"], "switching the adapter off"),
        (["method=grad_diff", "training.beta=null"], "none needed"),
    ],
)
def test_reference_is_the_cheapest(check: Check, overrides: list[str], expected: str) -> None:
    if "training.beta=null" in overrides:
        with pytest.raises(RecipeError, match=r"training.beta"):
            check("fictional/npo", *overrides)
        assert expected in check("fictional/grad_diff")
    else:
        assert expected in check("fictional/npo", *overrides)


def test_tokens_of_a_model_from_scratch(check: Check) -> None:
    shown = check(
        "fictional/target", "model.path=null", "data.train.0.limit=20", "model.create.vocab_size=512"
    )
    assert "made from scratch" in shown
    assert "?" not in shown


def test_names_with_brackets_are_shown(check: Check, write: Write) -> None:
    """Square brackets are markup to the printing library."""
    path = write("[red]mine.jsonl", qa("Ana", "Bo"))
    shown = check("forget", f"data.forget={json.dumps(str(path))}", "training.retain=none")
    assert "[red]mine.jsonl" in shown


def test_what_cannot_be_reached_is_a_note(check: Check) -> None:
    shown = check("tofu/npo", "model.path=nobody/nothing")
    assert "the tokenizer cannot be reached from here" in shown
    assert "'locuslab/TOFU' is neither a local path nor a hub data set that can be reached" in shown
    assert "is valid (with the notes above)" in shown


def test_a_stream_that_is_switched_off(check: Check) -> None:
    """`retain: none` leaves the retain stream where it is, and its share of the mix."""
    shown = check("fictional/npo", "training.retain=none")
    assert "retain (not read)" in shown
    assert "training.retain is none: nothing holds the rest of the model in place" in shown
    assert "80 items an epoch" in shown
    mix = mix_of(load_recipe("fictional/npo", ["training.retain=none"]), ("forget",))
    assert mix.ratios == {}


def test_a_retain_set_beside_pairs_is_not_left_out_in_silence(check: Check) -> None:
    """DPO's own retain term is none. Of sets that are all trained on, nothing is said."""
    keep = "data.retain={name: retain90, limit: 4}"
    told = "the retain set is not read (data.retain), because training.retain is none; set training.retain"
    few = ["data.pairs.limit=4", "evaluation=null"]
    assert told in check("fictional/dpo", *few, keep)
    general = ["data.general={name: world_facts, limit: 4}", "training.retain_streams=[general]"]
    assert told.replace("data.retain", "data.general") in check("fictional/dpo", *few, *general)
    for overrides in ([], [keep, "training.retain=nll"]):
        assert "retain set" not in check("fictional/dpo", *few, *overrides)


def test_a_hidden_term_of_weight_0_is_switched_off(check: Check, write: Write) -> None:
    """alpha is a weight of RMU alone."""
    data = [f"data.{name}={write(f'{name}.jsonl', qa(name))}" for name in ("forget", "retain")]
    rmu = ["method=rmu", *data, "training.alpha=0", "evaluation=null"]
    assert "retain (not read)" in check("forget", *rmu)
    with pytest.raises(RecipeError, match=r"data.retian is not read by the method rmu"):
        check("forget", *rmu, data[1].replace("data.retain", "data.retian"))


def test_a_warm_up_that_never_ends_is_told(check: Check, write: Write) -> None:
    """6 rows, 2 a step: 3 steps are an epoch, so 5 epochs of warm-up end after 15 steps."""
    data = [
        f"data.{name}={write(f'{name}.jsonl', qa(*(f'{name} {i}' for i in range(6))))}"
        for name in ("forget", "retain")
    ]
    few = ["method=pdu", *data, "training.per_device_train_batch_size=2"]
    told = "training.dual_warmup_epochs (5) is not below the {} epochs that are trained, so alpha stays"
    assert told.format(5) in check("forget", *few, "training.max_steps=15")
    assert told.format(3) in check("forget", *few, "training.num_train_epochs=3")
    for setting in ("training.max_steps=16", "training.num_train_epochs=6"):
        assert "dual_warmup_epochs" not in check("forget", *few, setting)


# ---- What is refused -----------------------------------------------------------------------------------


def test_a_misspelt_stream(check: Check) -> None:
    with pytest.raises(
        RecipeError, match=r"data.forgte is not read by the method npo; did you mean 'forget'\?"
    ):
        check("fictional/npo", "data.forgte.path=x")
    with pytest.raises(RecipeError, match=r"data.holdout is not read by the method npo"):
        check("fictional/npo", "data.holdout={name: holdout}")


def test_streams_for_the_tokenizer_and_the_evaluation_are_read(check: Check, write: Write) -> None:
    path = write("mine.jsonl", qa("Ana", "Bo"))
    shown = check(
        "fictional/target", "model.path=null", "data.train=null", f"data.train={path}", f"data.words={path}",
        f"data.forget={path}", f"data.retain={path}", "model.create.tokenizer_streams=[words]",
        "evaluation={suite: forget}", "data.root=null", "data.mix.anchor=train",
    )  # fmt: skip
    assert "words (not read)" in shown
    # The tofu suite has data of its own, so this one would be read by nobody.
    with pytest.raises(RecipeError, match=r"data.forget is not read by the method sft"):
        check(
            "fictional/target", "model.path=null", f"data.forget={path}", "data.mix.anchor=train",
        )  # fmt: skip


def test_a_missing_stream(check: Check, write: Write) -> None:
    with pytest.raises(RecipeError, match=r"reads the stream 'retain'; give data.retain, or set .*none"):
        check("forget", f"data.forget={write('mine.jsonl', qa('Ana'))}")


@pytest.mark.parametrize(
    ("rows", "overrides", "message"),
    [
        (None, [], r"data.forget.path: .*mine.jsonl does not exist; "),
        ([], [], r"mine.jsonl is empty; put at least one row into it"),
        ([{"q": "a", "a": "b"}], [], r"data.forget.*columns"),
        ([{"question": "a?", "answer": ""}], [], r"empty answer \(row 0, counted from 0\)"),
        ([{"question": "a?", "answer": None}], [], r"empty answer \(row 0, counted from 0\)"),
        (qa("Ana"), ["data.max_length=8"], r"do not fit data.max_length=8 \(row 0 has \d+ tokens\)"),
        (qa("Ana"), ["data.forget.limit=1", "data.forget.rows='5:'"], r"no rows; check the file, `rows`"),
        (qa("Bo", "Cy"), [], r"1 example\(s\) are in the forget set and in the retain set \(forget row 0 = "),
    ],
)  # fmt: skip
def test_bad_data(
    check: Check, write: Write, tmp_path: Path, rows: Any, overrides: list[str], message: str
) -> None:
    retain = write("keep.jsonl", qa("Bo", "Di"))
    if rows is not None:
        write("mine.jsonl", rows)
    with pytest.raises(DataError, match=message):
        check("forget", f"data.forget={tmp_path / 'mine.jsonl'}", f"data.retain={retain}", *overrides)


ALTERNATES = ["method=alt_po", "training.retain=none"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("temperature: 0", r"data.alternates draws at temperature 0.0 .*set the temperature above 0"),
        ("top_p: 0", r"data.alternates draws at .* top_p 0.0, where no two draws could differ; set"),
        ("top_p: 1.5", r"top_p above 0 and at most 1"),
        ("prompt: Invent one.", r"data.alternates.prompt is 'Invent one.', .*; write {prompt} where"),
    ],
)
def test_alternate_answers_that_could_not_be_drawn(
    check: Check, write: Write, settings: str, message: str
) -> None:
    forget = f"data.forget={write('mine.jsonl', qa('Ana'))}"
    assert "generated by the target model" in check("forget", *ALTERNATES, forget, "data.alternates={}")
    with pytest.raises(RecipeError, match=message):
        check("forget", *ALTERNATES, forget, f"data.alternates={{{settings}}}")


def test_alternate_answers_that_are_there_already(check: Check, write: Write) -> None:
    rows = [{**row, "alternate_answer": "Cy."} for row in qa("Ana", "Bo")]
    settings = [*ALTERNATES, f"data.forget={write('mine.jsonl', rows)}"]
    check("forget", *settings)
    with pytest.raises(DataError, match=r"has a column alternate_answer, and data.alternates asks for new"):
        check("forget", *settings, "data.alternates={}")


def test_layers_that_the_model_does_not_have(check: Check, write: Write, tmp_path: Path) -> None:
    """Where its configuration can be read; GPT-2 calls the number of its layers n_layer."""
    data = [f"data.{name}={write(f'{name}.jsonl', qa(name))}" for name in ("forget", "retain")]
    rmu = ["method=rmu", *data, "training.layer=4"]
    check("forget", *rmu)  # the folder holds no configuration
    made = ["model.path=null", "model.create={hidden_size: 8, num_heads: 2, vocab_size: 300, num_layers: 4}"]
    with pytest.raises(RecipeError, match=r"training.layer is 4, but the model has 4 layers; use one of 0"):
        check("forget", *rmu, *made)
    for layers in (4, 5):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": layers}))
        here = [f"model.path={tmp_path}", f"model.tokenizer={tmp_path.parent}"]
        recipe = load_recipe("forget", [*rmu, *here])
        args = training_args(recipe, str(tmp_path), on_cpu=True)
        if layers == 5:
            objective_of(recipe, args)
        else:
            with pytest.raises(RecipeError, match=r"training.layer is 4, but the model has 4 layers"):
                objective_of(recipe, args)
    with pytest.raises(RecipeError, match=r"train_layers names layer 3, which .* output of layer 1"):
        check("forget", "method=rmu", *data, *made, "training.train_layers=[3]")


def test_a_missing_file_of_the_evaluation(check: Check) -> None:
    with pytest.raises(DataError, match=r"evaluation.data.forget.path: gone.jsonl does not exist"):
        check("fictional/npo", "evaluation.data={forget: gone.jsonl}")


def test_a_broken_retain_model(check: Check, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"empty holds no tokenizer.*name the folder of a saved model"):
        check("fictional/npo", f"evaluation.reference={tmp_path / 'empty'}")


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("model.path=./nowhere", ModelError, r"the model \./nowhere does not exist; check the path"),
        ("data.template.kind=chat", ModelError, r"the tokenizer has no chat template; use plain"),
        ("training.beta=-1", RecipeError, r"training.beta must be above 0, found -1"),
        ("training.reference=live", RecipeError, r"training.reference is 'live'; use one of auto"),
        ("evaluation.split=forget99", RecipeError, r"there is no split 'forget99'.*did you mean 'forget"),
        ("training.retain=all", RecipeError, r"training.retain is 'all'; use one of nll, kl"),
        (
            "training.eval_strategy=epoch",
            RecipeError,
            r"eval_strategy is 'epoch'.*leave it out: `evaluation`",
        ),
        ("training.lr_scheduler_type=warmup_stable_decay", RecipeError, r"cannot be set up:.*decay"),
        ("training.lr_scheduler_kwargs={nmu_cycles: 2}", RecipeError, r"cannot be set up:.*nmu_cycles"),
        ("training.reference=cached", None, ""),
    ],
)
def test_bad_settings(check: Check, override: str, error: Any, message: str) -> None:
    if error is None:
        assert "cached" in check("fictional/npo", override)
        with pytest.raises(RecipeError, match="cached stores log-probs only"):
            check("fictional/npo", override, "training.retain=kl")
    else:
        with pytest.raises(error, match=message):
            check("fictional/npo", override)


def test_an_optimizer_that_is_not_installed(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run` refuses it before any work; `check` may be on another machine."""
    overrides = ["training.optim=paged_adamw_32bit", "training.matrix_optimizer=null"]
    check("fictional/npo", *overrides)
    for name in ("bitsandbytes", "bitsandbytes.optim"):  # another test may have imported it
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RecipeError, match=r"bitsandbytes.*pip install 'unlearnkit\[quantization\]'"):
        training_args(load_recipe("fictional/npo", overrides), str(tmp_path))


def test_all_errors_of_a_recipe_together(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "# Bad in five places.\nmethod: npo\nmodel: {path: x, dytpe: float32}\ndata:\n  root: fictional\n"
        "  forget: {nmae: forget10}\ntraining:\n  betta: 0.1\n  num_train_epochs: many\n"
    )
    with pytest.raises(RecipeError) as caught:
        check_recipe(str(path), ["training.lerning_rate=1"])
    lines = str(caught.value).splitlines()
    assert len(lines) >= 5
    for line, number, text in (
        (lines[0], 3, "did you mean 'dtype'?"), (lines[1], 6, "did you mean 'name'?"),
    ):  # fmt: skip
        assert f"bad.yaml:{number}: " in line
        assert text in line
    assert any("bad.yaml:8" in line and "did you mean 'beta'?" in line for line in lines)
    assert any("bad.yaml:9" in line and "'many'" in line for line in lines)
    assert any("override" in line and "did you mean 'learning_rate'?" in line for line in lines)
