"""SLUNG (arXiv 2505.03052): what is learned, ignored and unlearned."""

from __future__ import annotations

import copy
import math
import re

import datasets
import pytest
import torch
from helpers_training import data_sets, logs, make_trainer
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnkit.data.collate import StreamCollator
from unlearnkit.data.formats import IGNORE, Template, tokenize_stream
from unlearnkit.data.token_stats import TokenStats
from unlearnkit.errors import DataError, RecipeError
from unlearnkit.methods.slung import SLUNG, TREATMENTS, SLUNGConfig, token_weights
from unlearnkit.recipe import TemplateSpec
from unlearnkit.training.objective import Step, as_counts, count_streams
from unlearnkit.training.retain import CrossEntropy
from unlearnkit.training.selective import SelectiveNLL

TEXT = "Once there was Reyes who wrote and then there was nobody else"


def span(text, word, risk="high"):
    return {"start": text.index(word), "end": text.index(word) + len(word), "risk": risk}


def tokens_of(tokenizer, *rows, selectors=(), max_length=128):
    template = Template.for_tokenizer(tokenizer, TemplateSpec(kind="plain"))
    named = [{"example_id": f"e{i}", **row} for i, row in enumerate(rows)]
    return tokenize_stream(
        named, tokenizer, template, max_length=max_length, name="train", selectors=selectors
    ).rows


def step_of(model, rows, counted=None):
    """A step over one micro-batch; its denominators may be those of other rows."""
    collate = StreamCollator(("train",), pad_id=0)
    batch, whole = (
        collate([{"train": [row]} for row in rows]),
        collate([{"train": [r]} for r in counted or rows]),
    )
    counts = as_counts(count_streams([whole], ("train",), "cpu"), ("train",))
    return Step(model, batch, counts), batch


def logit_gradient(term, model, rows):
    """(loss, its gradient with respect to the logits of every position of the whole batch, metrics)."""
    step, batch = step_of(model, rows)
    seen = []
    hook = model.get_output_embeddings().register_forward_hook(lambda _, __, logits: seen.append(logits))
    out = term(step, batch)
    hook.remove()
    [logits_NV] = seen  # one pass, of the target positions alone
    gradient_NV = torch.autograd.grad(out.loss, logits_NV)[0]
    count, length = batch["train"]["labels"].shape
    full = gradient_NV.new_zeros(count * length, gradient_NV.shape[-1])
    full[batch["train"]["target_positions"]] = gradient_NV
    return out.loss.detach(), full.unflatten(0, (count, length)), out.metrics


# Treatments


def test_the_variants_treat_the_classes_as_the_authors_ran_them():
    risks = ["", "high", "middle", "low", "names"]
    masked = token_weights(risks, TREATMENTS["masked"])
    assert masked.learn.tolist() == [1, 0, 0, 1, 0]
    assert masked.unlearn.tolist() == [0] * 5
    pushed = token_weights(risks, TREATMENTS["unlikelihood"])
    assert pushed.learn.tolist() == [1, 0, 1, 1, 0]
    assert pushed.unlearn.tolist() == [0, 1, 0, 0, 1]


class Risks(TokenStats):
    """Tokens of which nothing but the classes is known."""

    def __init__(self, risks):
        self._risks = risks

    @property
    def risks(self):
        return self._risks


CLASSES = st.sampled_from(["", "high", "middle", "other"])
WHAT = st.sampled_from(["learn", "ignore", "unlearn"])


@settings(deadline=None)
@given(
    st.lists(CLASSES),
    st.sampled_from(["masked", "unlikelihood"]),
    st.dictionaries(CLASSES.filter(bool), WHAT),
)
def test_a_treatment_of_ones_own_comes_first(risks, variant, treatment):
    weights = SLUNG(variant, treatment)(Risks(risks))
    for risk, learn, unlearn in zip(risks, weights.learn.tolist(), weights.unlearn.tolist(), strict=True):
        assert learn + unlearn in (0.0, 1.0)
        own = treatment.get(risk)
        if not risk or own == "learn":
            assert learn == 1
        elif own is not None:
            assert (learn, unlearn) == (0, own == "unlearn")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "mask"}, r"training\.variant must be masked or unlikelihood, found 'mask'"),
        ({"treatment": {"high": "drop"}}, r"'high': 'drop'.*learn, ignore, unlearn"),
        ({"treatment": {"": "learn"}}, r"a risk class"),
    ],
)
def test_bad_settings(options, message, tmp_path):
    for build in (SLUNG, lambda **given: SLUNGConfig(output_dir=str(tmp_path), **given)):
        with pytest.raises(RecipeError, match=message):
            build(**options)


def test_a_class_of_the_treatment_that_no_target_has_is_told(tiny_tokenizer):
    template = Template.for_tokenizer(tiny_tokenizer, TemplateSpec(kind="plain"))
    rows = [{"example_id": "e", "text": TEXT, "spans": [span(TEXT, "Reyes")]}]
    options = {"max_length": 128, "name": "train"}
    for treatment, remarks in (
        (
            {"hihg": "unlearn"},
            ["data.train: training.treatment names hihg, but no target token has that risk"],
        ),
        ({"high": "unlearn"}, []),
    ):
        selectors = [SLUNG(treatment=treatment)]
        chosen = tokenize_stream(rows, tiny_tokenizer, template, selectors=selectors, **options).chosen
        assert [text.split(";")[0] for text in chosen.facts().get("remarks", [])] == remarks
        assert all("did you mean 'high'?" in text for text in chosen.remarks)


# The loss


def test_risky_rows_get_no_gradient_and_the_others_that_of_cross_entropy(tiny_model, tiny_tokenizer):
    """Masked, in float64: the rows that predict risky tokens are zero to the bit; the others are those of
    plain cross-entropy times (targets / kept targets), since the denominator counts what is kept."""
    model = tiny_model().double()
    documents = [
        {"text": TEXT, "spans": [span(TEXT, "Reyes"), span(TEXT, "nobody", "middle")]},
        {"text": "Once more"},
    ]
    rows = tokens_of(tiny_tokenizer, *documents, selectors=[SLUNG()])
    plain = tokens_of(tiny_tokenizer, *documents)
    _, ours, metrics = logit_gradient(SelectiveNLL(), model, rows)
    _, full, _ = logit_gradient(CrossEntropy(("train",)), model, plain)
    risky = torch.zeros(ours.shape[:2], dtype=torch.bool)
    for i, (row, whole) in enumerate(zip(rows, plain, strict=True)):
        for t, (label, old) in enumerate(zip(row["labels"], whole["labels"], strict=True)):
            risky[i, t - 1] |= label != old
    assert 4 <= risky.sum() <= 12
    assert not ours[risky].any()
    total, dropped = sum(len(row["labels"]) - 1 for row in rows), int(risky.sum())
    torch.testing.assert_close(ours[~risky], full[~risky] * total / (total - dropped), rtol=1e-12, atol=1e-16)
    assert metrics["train/kept"].item() == pytest.approx((total - dropped) / total)
    assert "train/unlikelihood" not in metrics


def test_the_masked_row_is_the_one_before_the_first_risky_token(tiny_model, tiny_tokenizer):
    """Row t predicts token t + 1: the row of the last safe token before the span (and the space before it) is
    masked; the row of the span's last token, which predicts a safe one, is trained."""
    rows = tokens_of(tiny_tokenizer, {"text": TEXT, "spans": [span(TEXT, "Reyes")]}, selectors=[SLUNG()])
    offsets = tiny_tokenizer(TEXT, return_offsets_mapping=True)["offset_mapping"]
    place = TEXT.index("Reyes")
    inside = [t for t, (a, b) in enumerate(offsets) if a < place + 5 and place - 1 < b]
    assert len(inside) > 1
    _, gradient, _ = logit_gradient(SelectiveNLL(), tiny_model(), rows)
    zero = [t for t in range(len(offsets)) if not gradient[0, t].any()]
    assert zero == [t - 1 for t in inside]


def test_a_risky_token_stays_in_the_context(tiny_model, tiny_tokenizer):
    """Another token in its place changes the loss of what follows, though its own is not counted."""
    model = tiny_model()
    [row] = tokens_of(tiny_tokenizer, {"text": TEXT, "spans": [span(TEXT, "Reyes")]}, selectors=[SLUNG()])
    place = row["labels"].index(IGNORE, 1)
    other = {**row, "input_ids": [*row["input_ids"]]}
    other["input_ids"][place] = (row["input_ids"][place] + 7) % 500
    losses = []
    for one in (row, other):
        step, _ = step_of(model, [one])
        losses.append((-step.token_logps("train")).detach())
    before = place - 1  # targets 1 .. place - 1
    assert torch.equal(losses[0][:before], losses[1][:before])
    assert (losses[0][before:] != losses[1][before:]).float().mean() > 0.9


@pytest.mark.parametrize("variant", ["masked", "unlikelihood"])
def test_without_risk_it_is_cross_entropy_to_the_bit(tiny_model, tiny_tokenizer, variant):
    model = tiny_model()
    documents = [
        {"text": TEXT, "spans": None},
        {"text": "Once more", "spans": [span("Once more", "more", "low")]},
    ]
    ours = logit_gradient(
        SelectiveNLL(), model, tokens_of(tiny_tokenizer, *documents, selectors=[SLUNG(variant)])
    )
    plain = logit_gradient(CrossEntropy(("train",)), model, tokens_of(tiny_tokenizer, *documents))
    assert torch.equal(ours[0], plain[0])
    assert torch.equal(ours[1], plain[1])
    assert ours[2]["train/kept"].item() == 1.0


def test_all_risky_is_refused_for_a_set_and_zero_for_a_batch(tiny_model, tiny_tokenizer):
    """A set without a token to learn is a mistake; a batch of such rows in a larger one is a loss of zero."""
    risky = {"text": TEXT, "spans": [{"start": 0, "end": len(TEXT), "risk": "high"}]}
    everything = SLUNG(treatment={"high": "ignore"})
    template = Template.for_tokenizer(tiny_tokenizer, TemplateSpec(kind="plain"))
    rows = tokens_of(tiny_tokenizer, risky, {"text": TEXT}, selectors=[everything])
    # EOS stands for no character, so it is learned even there.
    assert [label for label in rows[0]["labels"] if label != IGNORE] == [tiny_tokenizer.eos_token_id]
    one = {"example_id": "e", "prompt": "Say:", "completion": TEXT, "spans": risky["spans"]}
    cut = {"max_length": 12, "truncate": True}  # and without room for it nothing is left
    with pytest.raises(DataError, match=r"data\.train: of \d+ target tokens none is left to learn"):
        tokenize_stream([one], tiny_tokenizer, template, name="train", selectors=[everything], **cut)

    model = tiny_model()
    empty = {**rows[0], "labels": [IGNORE] * len(rows[0]["labels"])}
    step, batch = step_of(model, [empty], counted=rows)
    out = SelectiveNLL()(step, batch)
    gradients = torch.autograd.grad(out.loss, list(model.parameters()), allow_unused=True)
    assert out.loss.item() == 0.0
    assert all(g is None or not g.any() for g in gradients)
    assert all(math.isfinite(value) for value in out.metrics.values())


def test_unlikelihood_pushes_down_what_is_high_and_learns_the_rest(tiny_model, tiny_tokenizer):
    """Loss = (sum of -log p over learned + sum of -log(1 - p) over unlearned) / (both), by hand from p."""
    model = tiny_model().double()
    documents = [
        {"text": TEXT, "spans": [span(TEXT, "Reyes"), span(TEXT, "nobody", "middle")]},
        {"text": "Once more"},
    ]
    rows = tokens_of(tiny_tokenizer, *documents, selectors=[SLUNG("unlikelihood")])
    loss, gradient, metrics = logit_gradient(SelectiveNLL(selectors=(SLUNG("unlikelihood"),)), model, rows)
    learned, pushed, directions = [], [], []
    for i, row in enumerate(rows):
        with torch.no_grad():
            p_TV = torch.softmax(model(torch.tensor([row["input_ids"]])).logits[0], -1)
        for t in range(1, len(row["labels"])):
            assert row["labels"][t] == row["input_ids"][t]  # an unlearned token stays a target
            p = p_TV[t - 1, row["labels"][t]].item()
            (pushed if row["unlearn"][t] else learned).append(-math.log(1 - p if row["unlearn"][t] else p))
            directions.append((row["unlearn"][t], gradient[i, t - 1, row["labels"][t]].item(), p))
    count = len(learned) + len(pushed)
    assert 2 <= len(pushed) <= 6
    assert loss.item() == pytest.approx((sum(learned) + sum(pushed)) / count, rel=1e-9)
    for marked, slope, p in directions:
        assert slope == pytest.approx((p if marked else p - 1) / count, rel=1e-6)
    assert metrics["train/nll"].item() == pytest.approx(sum(learned) / len(learned), rel=1e-6)
    assert metrics["train/unlikelihood"].item() == pytest.approx(sum(pushed) / len(pushed), rel=1e-6)
    assert metrics["train/kept"].item() == pytest.approx(len(learned) / count, rel=1e-6)


# Training


def trained(tmp_path, model, tokenizer, streams, **settings):
    trainer = make_trainer("slung", model, tokenizer, streams, tmp_path, **settings)
    trainer.train()
    return trainer


def test_how_a_batch_is_laid_out_does_not_matter(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    """Rows that follow each other without padding, rows with it, and one row at a time."""
    streams = data_sets(fictional_rows)
    layouts = [{}, {"packing": "never"}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}]
    options = {"variant": "unlikelihood", "optim": "sgd", "num_train_epochs": 1}
    first, *others = (
        logs(trained(tmp_path, tiny_model(), tiny_tokenizer, streams, **options, **layout))
        for layout in layouts
    )
    assert len(first) == 3
    for other in others:
        for one, two in zip(first, other, strict=True):
            for key in ("loss", "grad_norm", "train/nll", "train/kept", "train/unlikelihood"):
                assert one[key] == pytest.approx(two[key], rel=1e-5)


def test_risky_words_are_learned_unlearned_or_neither(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    """From scratch they are less likely where nothing is learned of them; in a model that knows them, masked
    leaves them and unlikelihood pushes them away."""
    streams = data_sets(fictional_rows)
    rows = tokens_of(tiny_tokenizer, *streams["train"], selectors=[SLUNG("unlikelihood")])

    def risky_nll(model, **settings):
        options = {"per_device_train_batch_size": 10, "num_train_epochs": 30, **settings}
        model = trained(tmp_path, model, tiny_tokenizer, streams, **options).model
        step, _ = step_of(model.eval(), rows)
        with torch.no_grad():
            return -step.token_logps("train")[step.unlearned("train")].mean().item()

    knows = tiny_model()
    learned, masked = risky_nll(knows, treatment={"high": "learn"}), risky_nll(tiny_model())
    assert learned < masked - 0.5
    left, pushed = (
        risky_nll(copy.deepcopy(knows), num_train_epochs=10, variant=variant)
        for variant in ("masked", "unlikelihood")
    )
    assert left < masked - 0.5
    assert left < pushed - 0.5


def test_goldfish_and_slung_together(tiny_tokenizer, fictional_rows, tmp_path):
    """`also`: what either of them drops is dropped; what SLUNG unlearns is unlearned, hole or not."""
    streams = data_sets(fictional_rows)
    config = SLUNGConfig(output_dir=str(tmp_path), variant="unlikelihood", also={"goldfish": {"k": 3}})
    slung, goldfish = config.selectors()
    both, mine, theirs = (
        tokens_of(tiny_tokenizer, *streams["train"], selectors=chosen)
        for chosen in ([slung, goldfish], [slung], [goldfish])
    )
    holes = 0
    for one, two, three in zip(both, mine, theirs, strict=True):
        assert one["unlearn"] == two["unlearn"]
        for label, marked, hole in zip(one["labels"], one["unlearn"], three["labels"], strict=True):
            assert label == IGNORE if hole == IGNORE and not marked else label != IGNORE
            holes += hole == IGNORE
    assert holes > 20


# What is refused


def test_rows_that_nobody_has_annotated_are_refused_before_the_training(
    tiny_model, tiny_tokenizer, fictional_rows, tmp_path
):
    full = data_sets(fictional_rows)["train"].remove_columns("spans")
    empty = full.add_column("spans", [[] for _ in full], feature=datasets.List(
        {"start": datasets.Value("int64"), "end": datasets.Value("int64"), "risk": datasets.Value("string")}
    ))  # fmt: skip
    broken = full.add_column("spans", [[{"start": 0, "end": 10**6, "risk": "high"}] for _ in full])
    for data, parts in (
        (full, ["data.train has no column spans", "data.annotate", "`unlearnkit data annotate`"]),
        (empty, ["no span in any of its 10 rows", "`unlearnkit data annotate`"]),
        (broken, ["example", "0:1000000 (high)"]),
    ):
        with pytest.raises(DataError, match=".*".join(map(re.escape, parts))):
            make_trainer("slung", tiny_model(), tiny_tokenizer, {"train": data}, tmp_path)


def test_rows_without_a_span_are_counted(tiny_tokenizer):
    template = Template.for_tokenizer(tiny_tokenizer, TemplateSpec(kind="plain"))
    rows = [
        {"example_id": "a", "text": TEXT, "spans": [span(TEXT, "Reyes")]},
        {"example_id": "b", "text": TEXT},
    ]
    found = tokenize_stream(
        rows, tiny_tokenizer, template, max_length=64, name="train", selectors=[SLUNG()]
    ).chosen
    assert any("1 of 2 examples" in remark for remark in found.remarks)
    assert found.facts()["targets_by_risk"] == {"high": found.candidates - found.learned}
