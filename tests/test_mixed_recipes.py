"""Recipes over several streams without a forget set: what mixes them, and what is never read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Literal

import pytest

from unlearnkit.data.mixing import StreamMix
from unlearnkit.errors import DataError, RecipeError
from unlearnkit.preflight import mix_of
from unlearnkit.recipe import load_recipe
from unlearnkit.strict import phrase
from unlearnkit.training.documents import refuse_beyond_positions


@pytest.fixture
def recipe(tmp_path: Any) -> Any:
    """`recipe("temperature: 1")`: a recipe over streams a and b with that mix."""

    def make(mix: str) -> Any:
        path = tmp_path / "m.yaml"
        path.write_text(
            "method: goldfish\nmodel: {path: x}\ndata:\n  a: a.jsonl\n  b: b.jsonl\n"
            f"  mix: {{{mix}}}\ntraining: {{train_streams: [a, b]}}\nevaluation: null\n"
        )
        return load_recipe(path)

    return make


@pytest.mark.parametrize(
    ("mix", "shares"),
    [
        ("temperature: 1", {"a": 4, "b": 2}),
        ("'weights': {a: 3, b: 1}, epoch_size: 8", {"a": 6, "b": 2}),
        ("", {}),  # a is the anchor
    ],
)
def test_no_anchor_needs_to_be_named(recipe: Any, mix: str, shares: dict[str, int]) -> None:
    found = StreamMix({"a": range(4), "b": range(2)}, mix_of(recipe(mix), ("a", "b")))
    assert found.shares == shares


@pytest.mark.parametrize("weights", ["{a: 1}", "{a: 1, b: 0}"])
def test_a_stream_without_a_share_is_refused(recipe: Any, weights: str) -> None:
    with pytest.raises(RecipeError, match="gives the stream 'b' no share"):
        mix_of(recipe(f"weights: {weights}"), ("a", "b"))


def test_no_example_is_longer_than_the_positions() -> None:
    tokens: Any = {"train": SimpleNamespace(rows=[{"input_ids": [1] * 9}, {"input_ids": [1] * 3}])}
    refuse_beyond_positions(tokens, SimpleNamespace(max_position_embeddings=9))
    with pytest.raises(
        DataError, match=r"9 tokens, but the model has 8 positions; set data\.max_length to 8"
    ):
        refuse_beyond_positions(tokens, SimpleNamespace(max_position_embeddings=8))


def test_a_section_of_choices_says_them() -> None:
    assert (
        phrase(dict[str, Literal["learn", "ignore"]]) == "a section of keys, each with one of learn, ignore"
    )
