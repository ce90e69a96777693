"""Cuts of documents on disk: which selector each of them belongs to."""

from __future__ import annotations

import functools
import sys
import types
from dataclasses import dataclass, field

import datasets
import numpy as np
import pytest

from unlearnkit.data import corpus
from unlearnkit.data.columns import canonical
from unlearnkit.data.corpus import stored
from unlearnkit.data.formats import Template, Tokenizer
from unlearnkit.data.identity import selector_identity
from unlearnkit.data.token_stats import TokenStats, TokenWeights
from unlearnkit.methods.goldfish import Goldfish

TEXTS = ["Ana Brel writes of the sea. " * n for n in (1, 3, 2, 9, 1)]


class Odd:
    """Learns targets at odd places."""

    reads = ()

    def __call__(self, stats: TokenStats) -> TokenWeights:
        return TokenWeights.keep(stats.places % 2 == 1)


@pytest.fixture
def cut(tiny_tokenizer, tmp_path):
    """cut(selector): the examples on disk of which it chooses the targets."""

    def build(selector):
        template = Template.for_tokenizer(tiny_tokenizer, None)
        maker = Tokenizer(tiny_tokenizer, template, max_length=64, name="train", selectors=(selector,))
        return stored(table(), maker, tmp_path / "corpora")

    return build


def table():
    return canonical(datasets.Dataset.from_list([{"text": text} for text in TEXTS]), on_disk=True)


SOURCE = """
class Goldfish:
    reads = ()
    def __init__(self, **settings):
        self.__dict__.update(settings)
    def __repr__(self):
        return "Goldfish(k=4.0, h=13, strategy='hash', goldfish_seed=0, normalize=False, exempt_special=True)"
    def __call__(self, stats):
        return TokenWeights.keep(stats.places % {every} != 0)
"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """written(every, ...): a selector out of a user's module that drops every so many-th target."""

    def build(every, in_a_file=True, **settings):
        path = tmp_path / f"own{every}" / "own.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(SOURCE.format(every=every))
        module = types.ModuleType("own")
        module.TokenWeights = TokenWeights
        module.__file__ = str(path) if in_a_file else None
        monkeypatch.setitem(sys.modules, "own", module)
        exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
        return module.Goldfish(**settings)

    return build


def test_changed_code_is_another_selector(cut, written):
    """The same name and settings; what was dropped before is not found again."""
    learned = []
    for every in (2, 5, 2):
        found = cut(written(every))
        learned.append((found.chosen.learned, found.rows.folder))
    assert learned[0] == learned[2]
    assert learned[0][0] < learned[1][0]


def test_a_class_of_a_built_in_name_is_not_the_built_in(cut, written):
    settings = vars(Goldfish())
    own, built_in = cut(written(3, **settings)), cut(Goldfish())
    assert own.rows.folder != built_in.rows.folder
    assert own.chosen.learned < built_in.chosen.learned


@dataclass(frozen=True)
class Hidden(Odd):
    """Its settings are not shown, or not in full."""

    every: int = field(default=2, repr=False)
    places: object = None

    def __call__(self, stats: TokenStats) -> TokenWeights:
        return TokenWeights.keep(stats.places % self.every != 0)


def test_selectors_are_named_by_all_that_they_were_made_with(written):
    names = [
        selector_identity(one)
        for one in (Odd(), Hidden(), Hidden(every=3), Hidden(places=(1, 2)), Goldfish(), Goldfish(k=3))
    ]
    assert None not in names
    assert len(set(names)) == len(names)
    assert selector_identity(Goldfish()) == names[4]

    around = 2

    class Enclosing(Odd):
        def __call__(self, stats):
            return TokenWeights.keep(stats.places % around != 0)

    Enclosing.__qualname__ = "Enclosing"
    for unknown in (
        Enclosing(), len, functools.partial(Odd.__call__, Odd()), Hidden(places=np.arange(3)),
        written(2, table={"a": object()}), written(2, in_a_file=False),
    ):  # fmt: skip
        assert selector_identity(unknown) is None, unknown


def test_what_has_no_name_is_cut_anew_and_goes_with_the_process(cut, monkeypatch):
    kept = []
    monkeypatch.setattr(corpus.atexit, "register", kept.append)
    found = [cut(Hidden(every, places=np.arange(3))) for every in (2, 3)]
    assert found[0].chosen.learned != found[1].chosen.learned
    folders = [one.rows.folder for one in found]
    assert all(folder.exists() for folder in folders)
    for remove in kept:
        remove()
    left = {path.name for path in folders[0].parent.iterdir()}
    assert not any(folder.name in name for folder in folders for name in left)
    assert found[0].rows.documents.folder.exists()
