"""Documents on disk: the same examples as in memory, cut anew without tokenising, never half-written."""

from __future__ import annotations

import copy
import json
import os
import pickle

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnkit.data import corpus
from unlearnkit.data.columns import canonical, content_id
from unlearnkit.data.corpus import StoredTokens, stored
from unlearnkit.data.encoding import encode_document, pieces
from unlearnkit.data.formats import Template, Tokenizer, tokenize_stream
from unlearnkit.data.identity import content
from unlearnkit.data.spans import SPANS
from unlearnkit.data.token_stats import TokenStats, TokenWeights
from unlearnkit.errors import DataError

TEXTS = ["Ana Brel writes of the sea. " * n for n in (1, 3, 2, 9, 1)]


class Odd:
    """Learns targets at odd places, and unlearns every ninth."""

    reads = ()
    unlearns = True

    def __repr__(self) -> str:
        return "Odd()"

    def __call__(self, stats: TokenStats) -> TokenWeights:
        unlearn = stats.places % 9 == 0
        return TokenWeights(((stats.places % 2 == 1) & ~unlearn).float(), unlearn.float())


class Risky(Odd):
    """Drops what lies in a span."""

    reads_text = True

    def __repr__(self) -> str:
        return "Risky()"

    def __call__(self, stats: TokenStats) -> TokenWeights:
        import torch

        return TokenWeights.keep(torch.tensor([not risk for risk in stats.risks]))


class Nothing(Odd):
    def __repr__(self) -> str:
        return "Nothing()"

    def __call__(self, stats: TokenStats) -> TokenWeights:
        return TokenWeights.keep(stats.places < 0)


def table(texts=tuple(TEXTS), **columns):
    rows = [{"text": t, **{k: v[i] for k, v in columns.items()}} for i, t in enumerate(texts)]
    return datasets.Dataset.from_list(rows)


@pytest.fixture
def make(tiny_tokenizer, tmp_path):
    """make(table, ...): (on disk, in memory)."""
    template = Template.for_tokenizer(tiny_tokenizer, None)

    def build(rows, max_length=16, selectors=(), folder=tmp_path / "corpora"):
        maker = Tokenizer(tiny_tokenizer, template, max_length=max_length, name="train", selectors=selectors)
        on_disk = stored(canonical(rows, on_disk=True), maker, folder)
        in_memory = tokenize_stream(
            canonical(rows),
            tiny_tokenizer,
            template,
            max_length=max_length,
            name="train",
            selectors=selectors,
        )
        return on_disk, in_memory

    return build


@settings(max_examples=100, deadline=None)
@given(length=st.integers(1, 200), longest=st.integers(2, 40))
def test_pieces_tile_a_document(length, longest):
    """One behind the other, none too long; only a lone last token, without any context, is left out."""
    cuts = pieces(length, longest)
    assert [start for start, _ in cuts] == [0, *(end for _, end in cuts[:-1])]
    assert all(0 < end - start <= longest for start, end in cuts)
    assert all(end - start == longest for start, end in cuts[:-1])
    assert length - cuts[-1][1] == (length > longest and length % longest == 1)


@pytest.mark.parametrize("selectors", [(), (Odd(),)])
@pytest.mark.parametrize("max_length", [2, 16, 1000])
def test_the_same_examples_as_in_memory(make, max_length, selectors):
    on_disk, in_memory = make(table(TEXTS[:4]), max_length, selectors)
    assert list(on_disk.rows) == list(in_memory.rows)
    assert on_disk.rows[-1] == in_memory.rows[-1]
    assert on_disk.rows[1:3] == in_memory.rows[1:3]
    assert on_disk.rows.lengths.tolist() == in_memory.lengths
    assert on_disk.num_tokens == in_memory.num_tokens
    assert on_disk.num_target_tokens == in_memory.num_target_tokens > 0
    assert on_disk.chosen == in_memory.chosen


def test_spans_choose_as_in_memory(make):
    spans = [[{"start": 0, "end": 8, "risk": "name"}], [], [{"start": 28, "end": 36, "risk": "name"}]]
    on_disk, in_memory = make(table(TEXTS[:3], **{SPANS: spans}), 16, (Risky(),))
    assert list(on_disk.rows) == list(in_memory.rows)
    assert on_disk.chosen == in_memory.chosen
    assert on_disk.chosen.risks["name"] > 0
    other, _ = make(table(TEXTS[:3], **{SPANS: [[], [], []]}), 16, (Risky(),))
    assert other.chosen.learned == other.chosen.candidates, "other spans, another cut"


def test_names_are_a_documents_own_or_its_contents_and_may_repeat(make):
    on_disk, _ = make(table(example_id=["a", "a", None, "b", ""]), 1000)
    texts = [content_id({"text": text}) for text in TEXTS]
    assert [row["example_id"] for row in on_disk.rows] == ["a", "a", texts[2], "b", texts[4]]
    on_disk, _ = make(table(), 1000)
    assert [row["example_id"] for row in on_disk.rows] == texts


def test_another_length_cuts_anew_without_tokenising(make, monkeypatch, tiny_tokenizer):
    first, _ = make(table(), 16)
    monkeypatch.setattr(corpus, "encode_document", lambda *args, **kwargs: pytest.fail("tokenised again"))
    again, _ = make(table(), 16)
    other, in_memory = make(table(), 24)
    assert list(again.rows) == list(first.rows)
    assert [r["input_ids"] for r in other.rows] == [r["input_ids"] for r in in_memory.rows]
    marked, _ = make(table(), 24, (Odd(),))
    assert marked.rows.documents == other.rows.documents
    assert len({one.fingerprint for one in (first, other, marked)}) == 3
    assert again.fingerprint == first.fingerprint
    with pytest.raises(pytest.fail.Exception, match="tokenised again"):
        make(table(TEXTS[1:]))


def test_a_cut_that_leaves_nothing_is_refused_each_time(make):
    for _ in range(2):
        with pytest.raises(DataError, match="none is left to learn"):
            make(table(), 16, (Nothing(),))


@pytest.mark.parametrize("harm", ["cut", "gone", "no facts", "broken facts", "cut of the index"])
def test_what_is_not_whole_is_written_anew(make, tmp_path, harm):
    first, _ = make(table())
    rows = list(first.rows)
    folder = first.rows.folder if harm == "cut of the index" else first.rows.documents.folder
    if harm.startswith("cut"):
        path = folder / ("lengths.npy" if harm == "cut of the index" else "tokens.bin")
        path.write_bytes(path.read_bytes()[:-4])
    elif harm == "gone":
        (folder / "starts.npy").unlink()
    elif harm == "no facts":
        (folder / "complete.json").unlink()
    else:
        (folder / "complete.json").write_text('{"files"')
    again, _ = make(table())
    assert list(again.rows) == rows
    assert json.loads((folder / "complete.json").read_text())["files"]


def test_a_killed_writer_leaves_nothing_that_is_taken_for_whole(make, monkeypatch, tmp_path):
    calls = []

    def killed(tokenizer, text, **options):
        calls.append(text)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode_document(tokenizer, text, **options)

    monkeypatch.setattr(corpus, "encode_document", killed)
    with pytest.raises(KeyboardInterrupt):
        make(table())
    assert [p for p in (tmp_path / "corpora").iterdir() if p.is_dir()] == []
    monkeypatch.undo()
    whole, in_memory = make(table())
    left = whole.rows.documents.folder.with_name(f".{whole.rows.documents.folder.name}.0123abcd.part")
    left.mkdir()
    os.utime(left, (0, 0))  # long ago: a fresh one may be at work where the system has no locks
    (whole.rows.documents.folder / "tokens.bin").unlink()
    again, _ = make(table())
    assert [r["input_ids"] for r in again.rows] == [r["input_ids"] for r in in_memory.rows]
    assert not left.exists(), "what a killed writer left is removed by the next one"


def test_a_worker_process_gets_the_folder_and_not_the_tokens(make):
    on_disk, _ = make(table(["word " * 20_000]))
    assert on_disk.rows[0]["input_ids"]
    sent = pickle.dumps(on_disk.rows)
    assert len(sent) < 5000 < on_disk.num_tokens
    assert list(pickle.loads(sent)) == list(on_disk.rows)


def test_the_name_of_rows_follows_their_content():
    one = table(["a", "bc"])
    assert content(one) == content(table(["a", "bc"]))
    assert content(one) != content(table(["ab", "c"]))
    assert content(one) != content(table(["bc", "a"]))
    assert content(one) != content(one.rename_column("text", "other"))
    named = table(["a", "bc"], example_id=["x", "y"])
    assert content(named) != content(one) == content(named, ["text"])
    many = table([str(i) for i in range(1000)])
    assert content(many) != content(many.select(range(999)))


def test_rows_on_disk_are_never_copied_to_memory_to_be_counted(make, monkeypatch):
    on_disk, _ = make(table())
    monkeypatch.setattr(
        corpus.Corpus, "__getitem__", lambda self, index: pytest.fail("a row was read to be counted")
    )
    assert isinstance(on_disk, StoredTokens)
    assert on_disk.num_tokens == int(np.sum(on_disk.rows.lengths))
    assert on_disk.num_target_tokens == on_disk.num_tokens - len(on_disk.rows)
    assert len(on_disk.fingerprint) == 16


def test_empty_documents_are_counted_and_named():
    texts = ["word"] * 400
    texts[300], texts[301] = " ", "\n"
    with pytest.raises(DataError, match=r"2 row\(s\) have an empty text \(row 300, 301, counted from 0\)"):
        canonical(table(texts), on_disk=True)


def test_another_tokenizer_is_another_corpus(make, tmp_path, tiny_tokenizer):
    """In one folder: the second one must not be given the tokens of the first."""
    first, _ = make(table())
    other = copy.deepcopy(tiny_tokenizer)
    other.add_tokens(["Brel"])
    template = Template.for_tokenizer(other)
    maker = Tokenizer(other, template, max_length=16, name="train")
    second = stored(table(), maker, tmp_path / "corpora")
    in_memory = tokenize_stream(canonical(table()), other, template, max_length=16)
    assert [r["input_ids"] for r in second.rows] == [r["input_ids"] for r in in_memory.rows]
    assert first.rows.documents.folder != second.rows.documents.folder


def test_a_call_that_cuts_makes_no_other_corpus(make, tiny_tokenizer):
    first, _ = make(table())
    tiny_tokenizer("a text", truncation=True, max_length=2)
    again, _ = make(table())
    assert first.rows.documents.folder == again.rows.documents.folder


def test_a_selector_is_named_by_its_code_and_not_by_its_words(make):
    """Two selectors that call themselves alike, one of which learns more."""

    class Even(Odd):
        def __call__(self, stats: TokenStats) -> TokenWeights:
            return TokenWeights.keep(stats.places % 2 == 0)

    class Every(Odd):
        def __call__(self, stats: TokenStats) -> TokenWeights:
            return TokenWeights.keep(stats.places > 0)

    counts = [make(table(), selectors=(one(),))[0].chosen.learned for one in (Even, Every)]
    assert counts[0] < counts[1]


def test_a_writer_that_was_outrun_takes_what_is_there(make, monkeypatch):
    """Without locks two processes write at once; the slower one finds the folder filled."""
    made, _ = make(table())
    facts, known = corpus._facts, []

    def late(path):
        known.append(path)
        return None if len(known) == 1 else facts(path)

    monkeypatch.setattr(corpus, "_facts", late)
    monkeypatch.setattr(corpus.shutil, "rmtree", lambda *args, **kwargs: None)
    again, _ = make(table())
    assert again.rows.documents.folder == made.rows.documents.folder
    assert list(again.rows) == list(made.rows)
