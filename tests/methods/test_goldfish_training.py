"""Goldfish: windows of words, settings, and what holes in the labels mean for a training."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from helpers_training import data_sets, logs, make_trainer, weights
from torch.nn import functional

from unlearnkit.data.cells import levelled
from unlearnkit.data.collate import StreamCollator
from unlearnkit.data.encoding import Tokens
from unlearnkit.data.formats import IGNORE, Template, tokenize_stream
from unlearnkit.data.token_stats import ExampleStats
from unlearnkit.errors import RecipeError
from unlearnkit.methods import goldfish
from unlearnkit.methods.goldfish import Goldfish, GoldfishConfig, hash_drops
from unlearnkit.recipe import TemplateSpec
from unlearnkit.training.objective import Step, as_counts, count_streams
from unlearnkit.training.selective import SelectiveNLL

# ---- Normalised windows ------------------------------------------------------------------------------------


TEXT = "The old river of Jaffna runs by the mill where Zofia wrote her first long poem about light and rain."
VARIANTS = [
    TEXT.upper(),
    TEXT.replace(" ", "  "),
    TEXT.replace(" ", "\n\t"),
    "".join(chr(ord(c) + 0xFEE0) if c.isalpha() else c for c in TEXT),  # full width
    "Another beginning of five words. " + TEXT,
]


def decisions(text, tokenizer, **options):
    """(word, what of it stands before the token) -> whether the token is dropped; words count from the end,
    and the h first of the text are left out."""
    template = Template.for_tokenizer(tokenizer, TemplateSpec(kind="plain"))
    mask = Goldfish(k=2, h=3, **options)
    [row] = tokenize_stream(
        [{"example_id": "x", "text": text}], tokenizer, template, max_length=1024, selectors=[mask]
    ).rows
    words = [match.span() for match in re.finditer(r"\S+", text)]
    found = {}
    for place, (start, end) in enumerate(tokenizer(text, return_offsets_mapping=True)["offset_mapping"]):
        while start < end and text[start].isspace():
            start += 1
        word = sum(stop <= start for _, stop in words)
        if place and 3 <= word < len(words):
            key = word - len(words), levelled(text[words[word][0] : start])
            found.setdefault(key, row["labels"][place] == IGNORE)
    return found


@pytest.mark.parametrize("variant", VARIANTS, ids=["upper", "double", "lines", "width", "behind"])
def test_near_copies_share_their_holes_when_words_are_hashed(variant, tiny_tokenizer):
    """Wherever both begin a token at the same place of a word, and so at every word's beginning."""
    one, other = (decisions(text, tiny_tokenizer, normalize=True) for text in (TEXT, variant))
    both = one.keys() & other.keys()
    begins = {(word, "") for word in range(3 - len(TEXT.split()), 0)}
    assert both >= begins
    assert {key: one[key] for key in both} == {key: other[key] for key in both}
    assert {one[key] for key in begins} == {True, False}


def test_near_copies_have_other_holes_when_tokens_are_hashed(tiny_tokenizer):
    one, other = (decisions(text, tiny_tokenizer) for text in (TEXT, TEXT.upper()))
    assert any(one[key] != other[key] for key in one.keys() & other.keys())


def test_one_in_k_words_windows_is_dropped():
    windows = [f"a b {n}" for n in range(20_000)]
    drops = goldfish.text_drops([None, *windows], k=4)
    assert not drops[0]
    assert abs(drops[1:].double().mean() - 1 / 4) < 3 * math.sqrt(3 / 16 / 20_000)
    assert not torch.equal(goldfish.text_drops([None, *windows], k=4, seed=1), drops)


# ---- Settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 1.5}, r"training\.k must be at least 2, found 1\.5; .* null to drop nothing"),
        ({"k": -4.0}, r"training\.k must be at least 2, found -4"),
        ({"k": math.nan}, r"training\.k must be at least 2, found nan"),
        ({"k": 2.5, "strategy": "static"}, r"training\.k is 2\.5, but strategy static .* whole number"),
        ({"h": 0}, r"training\.h must be at least 1, found 0"),
        ({"strategy": "hsh"}, r"training\.strategy is 'hsh'; did you mean 'hash'\?"),
        ({"strategy": "compat", "normalize": True}, r"training\.normalize .* strategy compat hashes no text"),
    ],
)
def test_unusable_settings_are_refused(options, message, tmp_path):
    with pytest.raises(RecipeError, match=message):
        Goldfish(**options)
    with pytest.raises(RecipeError, match=message):
        GoldfishConfig(output_dir=str(tmp_path), use_cpu=True, **options)


def test_the_config_s_settings_are_the_selector_s(tmp_path):
    """Same names, same defaults; what the config is given reaches the selector."""
    args = GoldfishConfig(output_dir=str(tmp_path), use_cpu=True)
    assert args.selectors() == (Goldfish(),)
    options = {"k": 3.0, "h": 5, "goldfish_seed": 2, "normalize": True, "exempt_special": False}
    args = GoldfishConfig(output_dir=str(tmp_path), use_cpu=True, **options)
    assert args.selectors() == (Goldfish(**options),)


@pytest.mark.parametrize(("longest", "warned"), [(12, True), (13, True), (14, False)])
def test_a_window_longer_than_every_document_is_warned_of(longest, warned):
    """The last of 14 tokens is the first that has 13 before it."""
    assert (Goldfish().remark(longest) is not None) == warned
    stats = ExampleStats("x", Tokens(list(range(longest))), [IGNORE, *range(1, longest)], ())
    drops = hash_drops(stats.preceding(13), k=1.0)
    assert bool(drops.any()) == (not warned)
    for other in (Goldfish(k=None), Goldfish(strategy="static"), Goldfish(strategy="seeded_random")):
        assert other.remark(longest) is None


def test_the_warning_reaches_the_user(tiny_tokenizer, caplog):
    template = Template.for_tokenizer(tiny_tokenizer, TemplateSpec(kind="plain"))
    rows = [{"example_id": "a", "text": "Of the river."}]
    out = tokenize_stream(
        rows, tiny_tokenizer, template, max_length=64, name="train", selectors=[Goldfish(h=50)]
    )
    assert out.num_target_tokens == len(out.rows[0]["input_ids"]) - 1
    assert re.search(r"data\.train: the window of training\.h=50 tokens is not shorter", caplog.text)


# ---- Training ----------------------------------------------------------------------------------------------


@pytest.fixture
def documents(fictional_rows):
    """Four documents of an author's answers, the second of which is the first one's copy behind two words."""
    rows = fictional_rows("full")
    texts = [" ".join(r["answer"] for r in rows[i : i + 2]) for i in (0, 4, 8)]
    return [{"text": text} for text in (texts[0], f"Once more: {texts[0]}", *texts[1:])]


@pytest.fixture
def trainer_of(tiny_model, tiny_tokenizer, documents, tmp_path):
    """`trainer_of(method, **settings)` on the documents."""

    def build(method="goldfish", **settings):
        streams = {"train": Dataset.from_list(documents)}
        return make_trainer(method, tiny_model(), tiny_tokenizer, streams, tmp_path / method, **settings)

    return build


def test_without_a_k_training_is_fine_tuning_to_the_bit(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    runs = []
    for method, settings in (("sft", {}), ("goldfish", {"k": None})):
        streams = data_sets(fictional_rows)
        run = make_trainer(method, tiny_model(), tiny_tokenizer, streams, tmp_path / method, **settings)
        run.train()
        runs.append(run)
    plain, holes = (weights(run.model) for run in runs)
    assert all(torch.equal(plain[name], holes[name]) for name in plain)
    kept = [step.pop("train/kept") for step in logs(runs[1])]
    assert kept == [1.0] * len(logs(runs[0]))
    same = ("loss", "grad_norm", "train/nll")
    assert [[step[n] for n in same] for step in logs(runs[0])] == [
        [step[n] for n in same] for step in logs(runs[1])
    ]


def test_dropped_targets_have_no_gradient_and_do_not_count(trainer_of):
    """On logits that are all free: the loss is PyTorch's over the kept targets, and the rows before dropped
    ones get no gradient, to the bit.
    """
    trainer = trainer_of(k=3.0, h=3)
    plain = trainer_of("sft")
    items = [trainer.mix[i] for i in range(4)]
    batch = StreamCollator(("train",), pad_id=0)(items)
    full = StreamCollator(("train",), pad_id=0)([plain.mix[i] for i in range(4)])
    labels, before = batch["train"]["labels"], full["train"]["labels"]
    assert torch.equal(batch["train"]["input_ids"], full["train"]["input_ids"]), "dropped tokens are context"
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(*labels.shape, 512, generator=generator, dtype=torch.float64).requires_grad_()
    counts = as_counts(count_streams([batch], ("train",), "cpu"), ("train",))
    step = Step(lambda **inputs: SimpleNamespace(logits=logits), batch, counts)
    out = SelectiveNLL()(step, batch)
    kept, all_targets = (labels[:, 1:] != IGNORE), (before[:, 1:] != IGNORE)
    assert 0.2 < 1 - kept.sum() / all_targets.sum() < 0.45
    expected = functional.cross_entropy(logits[:, :-1][kept], labels[:, 1:][kept])
    torch.testing.assert_close(out.loss, expected, rtol=1e-6, atol=0)
    [gradient] = torch.autograd.grad(out.loss, [logits])
    assert torch.equal(gradient[:, :-1].abs().sum(-1) > 0, kept)
    assert out.metrics["train/kept"].item() == pytest.approx(int(kept.sum()) / int(all_targets.sum()))


def test_a_copy_has_the_same_holes_in_every_batch(trainer_of, tiny_tokenizer):
    """Documents 0 and 1 hold the same text: alone, behind two words, in batches of one, two and four."""
    masks = []
    for size in (1, 2, 4):
        trainer = trainer_of(k=3.0, h=4, per_device_train_batch_size=size)
        for item in (trainer.mix[0], trainer.mix[1]):
            [row] = trainer.data_collator([item])["train"]["labels"]
            masks.append([label == IGNORE for label in row.tolist()])
    length = len(masks[0]) - 8
    assert all(mask[-length:] == masks[0][-length:] for mask in masks)
    assert 0 < sum(masks[0][-length:]) < length


def test_the_log_tells_the_kept_share_and_the_denominator_is_what_was_kept(trainer_of):
    trainer = trainer_of(k=2.0, h=2, num_train_epochs=1)
    trainer.train()
    [step] = logs(trainer)
    chosen = trainer.tokenized["train"].chosen
    assert chosen.unlearned == 0
    assert step["train/kept"] == pytest.approx(chosen.learned / chosen.candidates)
    assert step["train/kept"] < 0.75
    assert step["loss"] == pytest.approx(step["train/nll"], rel=1e-6)
    assert step["loss"] == pytest.approx(math.log(512), rel=0.02), "a random model: ln V a token, not less"


def test_what_falls_into_a_hole_is_not_learned_by_heart(trainer_of):
    """Trained on four documents until it knows their kept tokens, the model hardly knows the dropped ones."""
    trainer = trainer_of(k=3.0, h=3, num_train_epochs=25, learning_rate=2e-2)
    trainer.train()
    plain = trainer_of("sft")
    kept = trainer.data_collator([trainer.mix[i] for i in range(4)])["train"]["labels"] != IGNORE
    full = plain.data_collator([plain.mix[i] for i in range(4)])["train"]
    with torch.no_grad():
        logits = trainer.model.eval()(full["input_ids"], attention_mask=full["attention_mask"]).logits
    logps = torch.log_softmax(logits[:, :-1], -1).gather(-1, full["input_ids"][:, 1:, None])[..., 0]
    dropped = (full["labels"][:, 1:] != IGNORE) & ~kept[:, 1:]
    assert logps[kept[:, 1:]].mean() > -0.7
    assert logps[dropped].mean() < -4
