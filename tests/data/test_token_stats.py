"""What a selector can ask of an example, and what becomes of its answer."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unlearnkit.data.encoding import Tokens, encode, encode_document, encode_pair, pieces
from unlearnkit.data.formats import IGNORE, Template, Tokenizer, tokenize_stream
from unlearnkit.data.spans import Span
from unlearnkit.data.token_stats import ExampleStats, TokenStats, TokenWeights, combined
from unlearnkit.errors import DataError, ModelError
from unlearnkit.recipe import TemplateSpec

DOCUMENT = {"example_id": "d", "text": "Lea Ode writes. Lea Ode sings and sleeps; nobody knows why she does."}


@dataclass(frozen=True)
class Places:
    """Keeps the targets at even places; unlearns those at a multiple of `unlearn`."""

    unlearn: int = 1000
    reads: ClassVar[tuple[str, ...]] = ()
    unlearns: ClassVar[bool] = True

    def __call__(self, stats: TokenStats) -> TokenWeights:
        unlearn = (stats.places % self.unlearn == 0).float()
        return TokenWeights((stats.places % 2 == 0).float(), unlearn)


@dataclass(frozen=True)
class Risky:
    """Drops whatever lies in a span."""

    reads: ClassVar[tuple[str, ...]] = ()
    reads_text: ClassVar[bool] = True

    def __call__(self, stats: TokenStats) -> TokenWeights:
        return TokenWeights.keep(torch.tensor([risk == "" for risk in stats.risks]))


def _stats(ids, labels, **options):
    return ExampleStats("x", Tokens(ids, options.pop("offsets", None)), labels, {9}, **options)


def test_the_window_ends_before_the_target_and_begins_with_the_document():
    stats = _stats([4, 5, 6, 9], [IGNORE, 5, 6, 9])
    assert stats.places.tolist() == [1, 2, 3]
    assert stats.targets.tolist() == [5, 6, 9]
    assert stats.preceding(2).tolist() == [[-1, 4], [4, 5], [5, 6]]
    assert stats.special.tolist() == [False, False, True]


def test_the_first_token_is_never_a_target():
    """Nothing predicts it, whatever its label says."""
    assert _stats([4, 5], [4, 5]).places.tolist() == [1]


def test_words_before_a_target_do_not_depend_on_case_and_spacing():
    """Tokens "The ", "ODE", " of", "f" of two spellings: two words and a begun one before the last."""
    one = _stats(
        [1, 2, 3, 4], [IGNORE, 2, 3, 4], text="The ODE off", offsets=[(0, 4), (4, 7), (7, 10), (10, 11)]
    )
    other = _stats(
        [1, 2, 3, 4], [IGNORE, 2, 3, 4], text="the   Ode off", offsets=[(0, 6), (6, 9), (9, 12), (12, 13)]
    )
    assert one.preceding_words(1) == ["the ", "ode ", "ode of"]
    assert one.preceding_words(2) == [None, "the ode ", "the ode of"]
    for h in (1, 2, 3):
        assert one.preceding_words(h) == other.preceding_words(h)


def test_what_is_not_known_is_refused():
    stats = _stats([4, 5], [IGNORE, 5])
    for name in ("logps", "entropies", "error_norms", "step"):
        with pytest.raises(RuntimeError, match=f"asks for {name}, which is not known"):
            getattr(stats, name)
    with pytest.raises(RuntimeError, match="`reads_text` does not say so"):
        _ = stats.risks
    for name in ("targets", "example_id", "places", "special", "risks"):
        with pytest.raises(RuntimeError, match=f"asks for {name}"):
            getattr(TokenStats(), name)


weights = st.sampled_from([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])


@given(st.lists(st.tuples(weights, weights, weights), min_size=1, max_size=8))
def test_deciding_together_is_associative_and_nothing_is_learned_and_unlearned(rows):
    a, b, c = (TokenWeights(*torch.tensor([row[i] for row in rows]).T) for i in range(3))
    one, other = a.both(b).both(c), a.both(b.both(c))
    assert torch.equal(one.learn, other.learn)
    assert torch.equal(one.unlearn, other.unlearn)
    assert not (one.learn * one.unlearn).any()
    assert torch.equal(one.learn, b.both(a).both(c).learn)


def test_dropped_targets_lose_their_label_and_are_counted(tiny_tokenizer):
    template = Template.for_tokenizer(tiny_tokenizer, TemplateSpec(kind="plain"))
    plain = tokenize_stream([DOCUMENT], tiny_tokenizer, template, max_length=256)
    chosen = tokenize_stream(
        [DOCUMENT], tiny_tokenizer, template, max_length=256, selectors=[Places(unlearn=3)]
    )
    ids = plain.rows[0]["input_ids"]
    assert chosen.rows[0]["input_ids"] == ids
    n = len(ids) - 1
    kept = [i for i in range(1, len(ids)) if i % 2 == 0 or i % 3 == 0]
    assert [i for i, label in enumerate(chosen.rows[0]["labels"]) if label != IGNORE] == kept
    assert [i for i, mark in enumerate(chosen.rows[0]["unlearn"]) if mark] == [i for i in kept if i % 3 == 0]
    removed = sum(i % 3 == 0 for i in kept)
    assert chosen.chosen.facts() == {
        "candidates": n, "learned": len(kept) - removed, "unlearned": removed, "dropped": n - len(kept),
        "examples_without_target": 0,
    }  # fmt: skip
    assert chosen.num_target_tokens == len(kept)
    assert chosen.fingerprint != plain.fingerprint


def test_nothing_left_to_learn_is_refused_and_single_examples_are_counted(tiny_tokenizer, caplog):
    template = Template.for_tokenizer(tiny_tokenizer, TemplateSpec(kind="plain"))
    whole = {"example_id": "w", "text": "Lea Ode", "spans": [{"start": 0, "end": 7, "risk": "high"}]}

    @dataclass(frozen=True)
    class Nothing(Places):
        def __call__(self, stats):
            return TokenWeights.keep(stats.places < 0)

    with pytest.raises(DataError, match=r"data.train: of \d+ target tokens none is left to learn"):
        tokenize_stream(
            [DOCUMENT], tiny_tokenizer, template, max_length=256, name="train", selectors=[Nothing()]
        )
    # The EOS of the whole-name document is its only target that lies in no span: none is left without it.
    rows = [whole, {**DOCUMENT, "spans": []}]

    @dataclass(frozen=True)
    class NoEnd(Risky):
        def __call__(self, stats):
            return Risky()(stats).both(TokenWeights.keep(~stats.special))

    out = tokenize_stream(rows, tiny_tokenizer, template, max_length=256, name="train", selectors=[NoEnd()])
    assert out.chosen.facts()["examples_without_target"] == 1
    assert out.chosen.facts()["targets_by_risk"].keys() == {"high"}
    assert "1 of 2 examples are left without any token to learn" in caplog.text


def test_weights_of_the_data_are_whole(tiny_tokenizer):
    template = Template.for_tokenizer(tiny_tokenizer, TemplateSpec(kind="plain"))

    @dataclass(frozen=True)
    class Half(Places):
        def __call__(self, stats):
            return TokenWeights.keep(stats.places * 0 + 0.5)

    with pytest.raises(ValueError, match="weights of 0 or 1"):
        tokenize_stream([DOCUMENT], tiny_tokenizer, template, max_length=256, selectors=[Half()])


def test_spans_are_found_in_every_piece_of_a_document(tiny_tokenizer):
    """Cut into pieces, exactly the same characters stay unlearned as in one piece, first tokens aside."""
    start = DOCUMENT["text"].index("Lea", 5)
    row = {**DOCUMENT, "spans": [{"start": start, "end": start + 7, "risk": "high"}]}
    template = Template.for_tokenizer(tiny_tokenizer, TemplateSpec(kind="plain"))

    def dropped(max_length):
        out = tokenize_stream([row], tiny_tokenizer, template, max_length=max_length, selectors=[Risky()])
        place, found, firsts = 0, set(), set()
        for piece in out.rows:
            firsts.add(place)
            found |= {place + i for i, label in enumerate(piece["labels"]) if label == IGNORE}
            place += len(piece["input_ids"])
        return found, firsts

    whole, first = dropped(512)
    assert len(whole - first) >= 2
    for length in (4, 7):
        found, firsts = dropped(length)
        assert found - firsts == whole - firsts - first


def test_an_answer_s_spans_are_placed_in_the_whole_text(tiny_tokenizer):
    """The tokens that are dropped spell the name, in the plain template and after an odd prompt."""
    row = {
        "example_id": "q", "prompt": "Who?  ", "completion": "It is Lea Ode of course.",
        "spans": [{"start": 6, "end": 13, "risk": "high"}],
    }  # fmt: skip
    template = Template.for_tokenizer(tiny_tokenizer, TemplateSpec(kind="plain"))
    maker = Tokenizer(tiny_tokenizer, template, max_length=128, selectors=[Risky()])
    [made] = maker.rows(row)
    [plain] = Tokenizer(tiny_tokenizer, template, max_length=128).rows(row)
    gone = [
        token
        for token, a, b in zip(made["input_ids"], plain["labels"], made["labels"], strict=True)
        if a != b
    ]
    assert tiny_tokenizer.decode(gone).strip() == "Lea Ode"


def test_a_template_that_rewrites_the_answer_is_refused(tiny_tokenizer):
    class Shouting(Template):
        def texts(self, tokenizer, prompt, answer):
            return prompt, answer.upper()

    template = Shouting(TemplateSpec(kind="plain"), chat=False)
    row = {
        "example_id": "q", "prompt": "Who?", "completion": "Lea",
        "spans": [{"start": 0, "end": 3, "risk": "high"}],
    }  # fmt: skip
    with pytest.raises(DataError, match="example q: the chat template writes its answer otherwise"):
        Tokenizer(tiny_tokenizer, template, max_length=64, selectors=[Risky()]).rows(row)


def test_a_tokenizer_without_offsets_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match=r"Slow does not tell where its tokens stand .* load the fast one"):
        encode(Slow(), "text", offsets=True)


def test_offsets_name_the_characters(tiny_tokenizer):
    """Also where prompt and answer were tokenised apart; the EOS stands at the end and for nothing."""
    for prompt, answer in (("Who wrote it?", " Lea Ode did."), ("Answ", "er")):
        first, second, _ = encode_pair(tiny_tokenizer, prompt, answer, chat=False, offsets=True)
        whole, text = first + second, prompt + answer
        assert whole.offsets[-1] == (len(text), len(text))
        for token, (start, end) in zip(whole.ids[:-1], whole.offsets[:-1], strict=True):
            assert text[start:end].strip() in tiny_tokenizer.decode([token])
        plain = encode_pair(tiny_tokenizer, prompt, answer, chat=False)
        assert (first.ids, second.ids) == (plain[0].ids, plain[1].ids)


@given(st.integers(1, 200), st.integers(2, 60))
def test_pieces_tile_the_document(length, longest):
    """One behind the other, none longer than allowed; a lone last token is left out."""
    cuts = pieces(length, longest)
    assert cuts[0][0] == 0
    assert all(a[1] == b[0] for a, b in itertools.pairwise(cuts))
    assert all(0 < end - start <= longest for start, end in cuts)
    assert cuts[-1][1] == (length - 1 if length % longest == 1 and length > longest else length)


def test_a_document_is_tokenised_once(tiny_tokenizer):
    tokens = encode_document(tiny_tokenizer, DOCUMENT["text"], offsets=True)
    template = Template.for_tokenizer(tiny_tokenizer, TemplateSpec(kind="plain"))
    maker = Tokenizer(tiny_tokenizer, template, max_length=5, selectors=[Risky()])
    row = {**DOCUMENT, "spans": [{"start": 0, "end": 7, "risk": "high"}]}
    assert maker.document(row, tokens) == Tokenizer(
        tiny_tokenizer, template, max_length=5, selectors=[Risky()]
    ).rows(row)


def test_selectors_are_combined_in_any_number():
    stats = _stats([4, 5, 6, 7, 8], [IGNORE, 5, 6, 7, 8])
    alone, twice = combined([Places()], stats), combined([Places(), Places(unlearn=4)], stats)
    assert alone.learn.tolist() == [0, 1, 0, 1]
    assert twice.learn.tolist() == [0, 1, 0, 0]
    assert twice.unlearn.tolist() == [0, 0, 0, 1]
    assert Span(0, 1, "high").risk == "high"


def test_a_piece_that_begins_inside_a_word_begins_with_the_next():
    """Of "holds a pen" from "lds" on: the word before "pen" is "a", and before "a" there is none."""
    stats = _stats([1, 2, 3], [IGNORE, 2, 3], text="holds a pen", offsets=[(2, 5), (5, 7), (7, 11)])
    assert stats.preceding_words(1) == [None, "a "]
