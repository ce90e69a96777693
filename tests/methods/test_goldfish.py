"""Goldfish (arXiv 2406.10209): which targets are dropped. Text, settings and trainings are in
`test_goldfish_training.py`."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from unlearnkit.data.encoding import Tokens
from unlearnkit.data.formats import IGNORE, Template, tokenize_stream
from unlearnkit.data.token_stats import ExampleStats
from unlearnkit.methods import goldfish
from unlearnkit.methods.goldfish import Goldfish, compat_drops, hash_drops
from unlearnkit.recipe import TemplateSpec

M = 2**64
EOS = 1
#: Two strategies with windows, and from which to which distance a token is in them.
WINDOWED = {"hash": (1, 0), "compat": (0, -1)}
ids = st.integers(0, 2**18)
properties = settings(deadline=None, max_examples=40)
passages = st.lists(ids, min_size=2, max_size=60)


def _stats(tokens, prompt=1, name="x"):
    labels = [IGNORE] * prompt + list(tokens[prompt:])
    return ExampleStats(name, Tokens(list(tokens)), labels, {EOS})


def dropped(tokens, *, prompt=1, name="x", **options):
    """Places of a document's tokens that are no targets any more."""
    stats = _stats(tokens, prompt, name)
    weights = Goldfish(**{"exempt_special": False, **options})(stats)
    assert not weights.unlearn.any()
    return set(stats.places[weights.learn == 0].tolist())


def random_ids(n, *, seed=0, below=4096):
    return torch.randint(0, below, (n,), generator=torch.Generator().manual_seed(seed))


# ---- The hash ----------------------------------------------------------------------------------------------


def mixed(x):
    """splitmix64 in whole numbers without bound."""
    x = (x + 0x9E3779B97F4A7C15) % M
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % M
    x = (x ^ x >> 27) * 0x94D049BB133111EB % M
    return x ^ x >> 31


def hash_by_hand(window, seed):
    state = mixed(seed % M)
    for token in window:
        state = mixed(state ^ token + 1)
    return state


def test_splitmix64_gives_the_published_sequence():
    """The first three numbers of the generator with seed 1234567; its n-th state is seed + (n-1) gamma."""
    gamma = 0x9E3779B97F4A7C15
    states = torch.tensor([(1234567 + n * gamma + 2**63) % M - 2**63 for n in range(3)])
    found = [x % M for x in goldfish.splitmix64(states).tolist()]
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@properties
@given(st.lists(ids, min_size=1, max_size=20), st.integers(-(2**70), 2**70))
def test_the_hash_is_that_of_whole_numbers(window, seed):
    """int64 arithmetic that wraps, with shifts that bring in zeros, is arithmetic modulo 2^64."""
    expected = hash_by_hand(window, seed)
    assert goldfish.chained_hash(torch.tensor([window]), seed).item() % M == expected
    for k in (2, 3.5, 4, 32):
        drops = hash_drops(torch.tensor([window]), k=k, seed=seed).item()
        assert drops == ((expected >> 11) / 2**53 < 1 / k)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_devices_agree():
    windows = random_ids(13_000).reshape(-1, 13)
    targets = random_ids(1000, seed=1)
    assert torch.equal(hash_drops(windows.cuda(), k=4).cpu(), hash_drops(windows, k=4))
    on_gpu = compat_drops(windows.cuda(), targets.cuda(), k=4)
    assert torch.equal(on_gpu.cpu(), compat_drops(windows, targets, k=4))


@properties
@given(st.lists(ids, min_size=2, max_size=13, unique=True), st.randoms())
def test_the_order_of_the_tokens_counts(window, random):
    """Another order is another hash, while the authors' product is the same."""
    other = random.sample(window, len(window))
    one, two = (goldfish.chained_hash(torch.tensor([w]), 0).item() for w in (window, other))
    assert (one == two) == (window == other)
    before, after = (torch.tensor([[0, *w[:-1]]]) for w in (window, other))
    ends = (torch.tensor([w[-1]]) for w in (window, other))
    assert torch.equal(*(compat_drops(w, t, k=4) for w, t in zip((before, after), ends, strict=True)))


@pytest.mark.parametrize("k", [2, 3, 4, 8, 32, 2.5])
@pytest.mark.parametrize("zeros", [False, True], ids=["random", "zeros"])
def test_one_in_k_is_dropped(k, zeros):
    """Within three standard deviations of n independent draws, also with id 0 in every window."""
    n, h = 40_000, 5
    tokens = random_ids(n + h)
    if zeros:
        tokens[::2] = 0
    windows = tokens.unfold(0, h, 1)[:n]
    options = {"places_N": torch.arange(n), "example_id": "x"}
    for drops in (hash_drops(windows, k=k), goldfish.random_drops(**options, k=k)):
        assert abs(drops.double().mean() - 1 / k) < 3 * math.sqrt((1 - 1 / k) / k / n)


# ---- Passages ----------------------------------------------------------------------------------------------


@properties
@given(passages, passages, st.integers(1, 8), st.sampled_from(list(WINDOWED)), st.integers(0, 9))
def test_the_same_passage_has_the_same_holes(passage, before, h, strategy, seed):
    """At the beginning and behind any other text, from its (h+1)-th token on."""
    options = {"h": h, "strategy": strategy, "goldfish_seed": seed, "k": 3}
    alone = dropped(passage, **options)
    behind = dropped([*before, *passage], **options)
    moved = {place - len(before) for place in behind}
    assert {place for place in moved if place >= h} == alone
    assert all(place >= h for place in alone), "fewer than h tokens before: never dropped"


@properties
@given(st.lists(ids, min_size=2, max_size=40), st.data(), st.integers(1, 9), st.sampled_from(list(WINDOWED)))
def test_a_changed_token_changes_the_next_holes_only(passage, data, h, strategy):
    """hash: places +1 to +h. compat: places 0 to h-1, for the target is in the window."""
    place = data.draw(st.integers(0, len(passage) - 1))
    changed = [*passage]
    changed[place] = data.draw(ids.filter(lambda token: token != passage[place]))
    options = {"h": h, "strategy": strategy, "k": 2}
    first, last = WINDOWED[strategy]
    differ = dropped(passage, **options) ^ dropped(changed, **options)
    assert differ <= set(range(place + first, place + h + last + 1))


@pytest.mark.parametrize(("strategy", "reach"), [("hash", range(1, 6)), ("compat", range(5))])
def test_every_place_in_the_window_counts(strategy, reach):
    """Of 60 changes of one token, each of the h places that it can reach sees some holes change."""
    seen = set()
    for trial in range(60):
        tokens = random_ids(20, seed=trial).tolist()
        changed = [*tokens]
        changed[8] += 1
        options = {"h": 5, "strategy": strategy, "k": 2}
        seen |= {p - 8 for p in dropped(tokens, **options) ^ dropped(changed, **options)}
    assert seen == set(reach)


@pytest.mark.parametrize("strategy", list(WINDOWED))
def test_pieces_of_a_document_know_nothing_of_each_other(strategy, tiny_tokenizer):
    """Each piece has the holes that it has alone, and none at its first h tokens."""
    rows = [{"example_id": str(i), "text": f"{word} of the river " * 20} for i, word in enumerate("abc")]
    template = Template.for_tokenizer(tiny_tokenizer, TemplateSpec(kind="plain"))
    mask = Goldfish(k=2, h=4, strategy=strategy)
    out = tokenize_stream(rows, tiny_tokenizer, template, max_length=16, selectors=[mask])
    assert len(out.rows) > len(rows)
    for row in out.rows:
        holes = {i for i, label in enumerate(row["labels"]) if i and label == IGNORE}
        alone = dropped(row["input_ids"], k=2, h=4, strategy=strategy)
        special = {i for i, token in enumerate(row["input_ids"]) if token in tiny_tokenizer.all_special_ids}
        assert holes == alone - special
        assert all(place >= 4 for place in holes)


@properties
@given(passages, st.data(), st.sampled_from(list(WINDOWED)))
def test_the_window_looks_into_the_prompt(tokens, data, strategy):
    """Of an answer the holes are those of the whole text: its first tokens have the prompt's before them."""
    prompt = data.draw(st.integers(1, len(tokens)))
    options = {"h": 3, "k": 2, "strategy": strategy}
    whole = dropped(tokens, **options)
    assert dropped(tokens, prompt=prompt, **options) == {place for place in whole if place >= prompt}


@pytest.mark.parametrize("strategy", goldfish._STRATEGIES)
def test_special_tokens_are_exempt(strategy):
    """Every other token is EOS: it is dropped only if that is asked for, and the others do not notice."""
    tokens = random_ids(400, below=90).add(7).tolist()
    tokens[::2] = [EOS] * 200
    options = {"k": 3, "h": 2, "strategy": strategy}
    everything = dropped(tokens, **options)
    assert {place for place in everything if place % 2 == 0}
    assert dropped(tokens, exempt_special=True, **options) == {p for p in everything if p % 2 == 1}


@pytest.mark.parametrize("k", [None, math.inf])
@pytest.mark.parametrize("strategy", goldfish._STRATEGIES)
def test_without_a_k_nothing_is_dropped(strategy, k):
    assert dropped(range(300), k=k, strategy=strategy) == set()


def test_no_target_is_no_mistake():
    for strategy in goldfish._STRATEGIES:
        assert dropped([4, 5, 6], prompt=3, strategy=strategy, h=1) == set()


# ---- Strategies --------------------------------------------------------------------------------------------


def test_static_drops_every_kth_target():
    """Counted among the targets: behind a prompt of 5 tokens the third target is at place 7."""
    assert dropped(range(12), k=3, strategy="static") == {3, 6, 9}
    assert dropped(range(12), k=3, strategy="static", prompt=5) == {7, 10}


def test_seeded_random_depends_on_the_name_the_place_and_the_seed():
    def drops(tokens=range(200), name="x", **options):
        return dropped(tokens, strategy="seeded_random", name=name, **options)

    assert drops() == drops() == drops(range(1000, 1200)), "not on the tokens"
    assert drops(range(100)) == {place for place in drops() if place < 100}
    assert len({frozenset(drops(name=name)) for name in "abc"}) == 3
    assert drops(goldfish_seed=1) != drops()


def test_another_seed_makes_other_holes():
    tokens = random_ids(200).tolist()
    assert dropped(tokens, goldfish_seed=1) != dropped(tokens)


def compat_by_hand(tokens, h, k):
    """The authors' rule in whole numbers: rows of shifted targets, a window that ends with the row's own.

    The product of a window is brought into the range of a signed 64-bit number, as its overflow does; the
    remainder is never negative.
    """
    targets = tokens[1:]
    table = torch.rand(1_000_003, generator=torch.Generator("cpu").manual_seed(2971215073))
    found = set()
    for row in range(h - 1, len(targets)):
        product = math.prod(targets[row - h + 1 : row + 1])
        wrapped = (product + 2**63) % 2**64 - 2**63
        if table[wrapped % 1_000_003].item() < 1 / k:
            found.add(row + 1)
    return found


@pytest.mark.parametrize("h", [1, 4, 13])
@pytest.mark.parametrize("k", [4, 8])
def test_compat_is_the_authors_table(h, k):
    """With ids up to 150,000 a product of 13 overflows nearly always, and half of the time to below 0."""
    for seed in range(3):
        tokens = random_ids(300, seed=seed, below=150_000).tolist()
        assert dropped(tokens, h=h, k=k, strategy="compat") == compat_by_hand(tokens, h, k)


def test_compat_windows_with_id_zero():
    """Entry 0 of the table is 0.2337: always dropped for k <= 4, never for k >= 5."""
    assert goldfish.hash_table()[0].item() == pytest.approx(0.2337, abs=5e-5)
    tokens = random_ids(60).add(1).tolist()
    tokens[30] = 0
    for k, in_table in ((2, True), (4, True), (5, False), (8, False)):
        holes = dropped(tokens, h=6, k=k, strategy="compat")
        assert (set(range(30, 36)) <= holes) == in_table
        assert bool(set(range(30, 36)) & holes) == in_table


def test_compat_drops_too_much_of_long_windows():
    """64 factors of two make a product of 0, which is dropped at k = 4. A random id has as many of them as a
    coin shows heads before tails, so 54 ids have 64 or more if 117 throws show at most 53 tails: 0.178. So
    dropped are 0.25 + 0.75 x 0.178 = 38 %.
    """
    n, h = 6000, 54
    tokens = random_ids(n * (h + 1), below=2**16).add(1).reshape(n, h + 1)
    windows, targets = tokens[:, :-1], tokens[:, -1]
    chance = binom.cdf(h - 1, h + 63, 0.5)
    expected = 0.25 + 0.75 * chance
    assert expected == pytest.approx(0.383, abs=5e-4)
    spread = 3 * math.sqrt(expected * (1 - expected) / n)
    assert compat_drops(windows, targets, k=4).double().mean().item() == pytest.approx(expected, abs=spread)
    assert hash_drops(windows, k=4).double().mean().item() == pytest.approx(0.25, abs=spread)
