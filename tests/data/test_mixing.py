"""Which rows meet: a pure function of (index, epoch, seed), for any number of processes."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from math import ceil

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler

from unlearnkit.data import permutations
from unlearnkit.data.mixing import EpochOrder, StreamMix
from unlearnkit.data.permutations import _splitmix64, permutation
from unlearnkit.errors import RecipeError
from unlearnkit.recipe import MixSpec


def streams(**sizes):
    """Row i of a stream holds (stream, i) and has a length of its own."""
    return {
        s: [{"row": (s, i), "input_ids": [0] * (1 + 7 * i % 13)} for i in range(n)] for s, n in sizes.items()
    }


def mixture(spec=None, *, seed=0, **sizes):
    return StreamMix(streams(**sizes), spec, seed=seed)


def drawn(mix, stream, epochs):
    """Row numbers of a stream in the order of items."""
    return [r for e in epochs for i in range(len(mix)) for r in mix.rows(i, e).get(stream, [])]


size = st.integers(1, 40)
seed = st.integers(0, 2**40)
policy = st.sampled_from(["continue", "restart", "fixed"])
ratio = st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.1])
quick = settings(max_examples=40, deadline=None)


@quick
@given(n=st.integers(0, 200), key=st.integers(-5, 2**63), word=st.text(max_size=5))
def test_permutations(n, key, word):
    order = permutation(n, key, word)
    assert sorted(order) == list(range(n))
    assert np.array_equal(order, permutation(n, key, word))


def test_permutations_never_change():
    """Fixed numbers: a pairing that moved with a library version would break every resumed run."""
    assert permutation(8, 0, "partner", "retain", 0, 0).tolist() == [7, 5, 4, 6, 3, 1, 2, 0]
    assert permutation(8, 1, "order", 2).tolist() == [3, 0, 6, 2, 4, 7, 1, 5]
    assert hex(_splitmix64(np.zeros(1, np.uint64))[0]) == "0xe220a8397b1dcdaf", "its published first output"


@quick
@given(
    forget=size, retain=size, seed=seed, policy=policy, ratio=ratio, epoch=st.integers(0, 50), data=st.data()
)
def test_pairing_depends_on_index_epoch_and_seed_alone(forget, retain, seed, policy, ratio, epoch, data):
    spec = MixSpec(ratios={"retain": ratio}, epoch_policy=policy)
    one, two = (mixture(spec, seed=seed, forget=forget, retain=retain) for _ in range(2))
    in_order = [one.rows(i, epoch) for i in range(len(one))]
    for i in data.draw(st.permutations(range(len(two)))):
        two.rows(i, data.draw(st.integers(0, 50)))  # whatever was asked before
        assert two.rows(i, epoch) == in_order[i]
        assert [r["row"] for r in two[epoch * len(two) + i]["retain"]] == [
            ("retain", r) for r in in_order[i]["retain"]
        ]


@quick
@given(forget=size, retain=size, seed=seed, ratio=ratio)
def test_all_retain_rows_are_met_before_one_comes_twice(forget, retain, seed, ratio):
    mix = mixture(MixSpec(ratios={"retain": ratio}), seed=seed, forget=forget, retain=retain)
    met = drawn(mix, "retain", range(6))
    assert len(met) == 6 * ceil(ratio * forget - 1e-9)
    for start in range(0, len(met) - retain + 1, retain):
        assert sorted(met[start : start + retain]) == list(range(retain)), "a whole pass over the stream"
    assert len(set(met[len(met) // retain * retain :])) == len(met) % retain


@quick
@given(forget=size, retain=size, seed=seed, policy=policy, ratio=ratio)
def test_every_epoch_has_the_anchor_once_and_its_share_of_the_others(forget, retain, seed, policy, ratio):
    spec = MixSpec(ratios={"retain": ratio}, epoch_policy=policy)
    mix = mixture(spec, seed=seed, forget=forget, retain=retain, other=5)
    assert len(mix) == forget
    for epoch in (0, 3):
        assert drawn(mix, "forget", [epoch]) == list(range(forget))
        counts = [len(mix.rows(i, epoch)["retain"]) for i in range(forget)]
        assert sum(counts) == ceil(ratio * forget - 1e-9)
        assert max(counts) - min(counts) <= 1, "spread evenly"
        assert len(drawn(mix, "other", [epoch])) == forget, "one each, unless a ratio says otherwise"
        assert max(Counter(drawn(mix, "retain", [epoch])).values()) <= ceil(ceil(ratio * forget) / retain) + (
            policy == "continue"
        )


def test_epoch_policies():
    kinds = {
        p: mixture(MixSpec(epoch_policy=p), forget=20, retain=30) for p in ("continue", "restart", "fixed")
    }
    epochs = {p: [drawn(mix, "retain", [e]) for e in range(4)] for p, mix in kinds.items()}
    assert all(e == epochs["fixed"][0] for e in epochs["fixed"])
    assert len({tuple(e) for e in epochs["restart"]}) == 4
    assert all(len(set(e)) == 20 for e in epochs["restart"])
    assert len(set(epochs["continue"][0] + epochs["continue"][1][:10])) == 30


def test_seeds_streams_and_anchors():
    assert drawn(mixture(forget=30, retain=30), "retain", [0]) != drawn(
        mixture(forget=30, retain=30, seed=1), "retain", [0]
    )
    mix = mixture(forget=30, retain=30, other=30)
    assert drawn(mix, "retain", [0]) != drawn(mix, "other", [0]), "streams of one size are shuffled apart"
    assert len(mixture(MixSpec(anchor="retain"), forget=3, retain=30)) == 30
    assert len(mixture(retain=7)) == 7, "a single stream is its own anchor"
    assert mixture(forget=3)[-1] == {}, "an empty item fills up a batch"


# Weights and temperature


@quick
@given(
    sizes=st.lists(size, min_size=2, max_size=4), weights=st.data(), epoch_size=st.integers(1, 60), seed=seed
)
def test_shares_are_exact(sizes, weights, epoch_size, seed):
    names = "abcd"[: len(sizes)]
    shares = {s: weights.draw(st.floats(0, 3)) for s in names}
    shares[names[0]] += 0.5
    spec = MixSpec(weights=shares, epoch_size=epoch_size)
    mix = mixture(spec, seed=seed, **dict(zip(names, sizes, strict=True)))
    assert len(mix) == epoch_size
    for epoch in (0, 2):
        counts = Counter(s for i in range(epoch_size) for s in mix.rows(i, epoch))
        assert sum(counts.values()) == epoch_size
        for stream in names:
            exact = shares[stream] / sum(shares.values()) * epoch_size
            assert abs(counts[stream] - exact) < 1
    for stream, count in zip(names, sizes, strict=True):
        met = drawn(mix, stream, range(4))[:count]
        assert len(set(met)) == len(met), "no row again before the stream is used up"


@pytest.mark.parametrize(
    ("temperature", "shares"), [(1.0, (10, 90)), (2.0, (25, 75)), (1e9, (50, 50)), (0.001, (0, 100))]
)
def test_temperature(temperature, shares):
    """Weights are n^(1/T): 10 and 90 rows give 1 : 9, 1 : 3 at T = 2, and 1 : 1 at T = infinity."""
    mix = mixture(MixSpec(temperature=temperature, epoch_size=100), a=10, b=90)
    assert (len(drawn(mix, "a", [0])), len(drawn(mix, "b", [0]))) == shares
    assert len(mixture(MixSpec(temperature=temperature), a=10, b=90)) == 100


def test_policies_of_weighted_streams():
    for kind, same in (("continue", 0), ("restart", None), ("fixed", 10)):
        mix = mixture(MixSpec(weights={"a": 1, "b": 1}, epoch_size=20, epoch_policy=kind), a=20, b=20)
        first, second = (drawn(mix, "a", [e]) for e in (0, 1))
        assert len(set(first)) == len(set(second)) == 10
        assert first != second or kind == "fixed"
        assert same is None or len(set(first) & set(second)) == same


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        (MixSpec(anchor="forgot"), "anchor is 'forgot'; the streams are forget, retain"),
        (MixSpec(ratios={"retian": 1}), "names the stream 'retian'; the streams are forget, retain"),
        (MixSpec(weights={"x": 1}), "names the stream 'x'"),
        (MixSpec(ratios={"retain": 0}), "ratios must be positive"),
        (MixSpec(weights={"forget": 0}), "weights must not be negative or all zero"),
        (MixSpec(weights={"forget": 2, "retain": -1}), "weights must not be negative"),
        (MixSpec(temperature=0.0), "temperature must be positive"),
        (MixSpec(temperature=1.0, weights={"forget": 1}), "both weights and a temperature"),
    ],
)
def test_mixtures_that_make_no_sense(spec, parts):
    with pytest.raises(RecipeError, match=parts):
        mixture(spec, forget=3, retain=3)


# Order


def order(mix, *, micro=1, batches=1, processes=1, strategy="random", epoch=0, seed=3):
    sampler = EpochOrder(
        mix,
        micro_batch_size=micro,
        num_micro_batches=batches,
        num_processes=processes,
        strategy=strategy,
        seed=seed,
    )
    sampler.set_epoch(epoch)
    return sampler


@quick
@given(n=size, micro=st.integers(1, 4), batches=st.integers(1, 4), epoch=st.integers(0, 5), data=st.data())
def test_an_epoch_is_every_item_once(n, micro, batches, epoch, data):
    processes = data.draw(st.sampled_from([p for p in (1, 2, 4) if batches % p == 0]))
    strategy = data.draw(st.sampled_from(["random", "sequential", "group_by_length"]))
    sampler = order(
        mixture(forget=n), micro=micro, batches=batches, processes=processes, strategy=strategy, epoch=epoch
    )
    items = list(sampler)
    assert len(items) == len(sampler)
    assert len(items) % (micro * processes) == 0
    real = [i for i in items if i >= 0]
    assert items == real + [-1] * (len(items) - n)
    assert sorted(real) == list(range(epoch * n, (epoch + 1) * n))
    if strategy == "sequential":
        assert real == sorted(real)


SPLITS = [
    (micro, processes, 8 // (micro * processes))
    for micro in (1, 2, 4, 8)
    for processes in (1, 2, 4)
    if micro * processes <= 8
]


@pytest.mark.parametrize("strategy", ["random", "group_by_length", "sequential"])
@pytest.mark.parametrize("n", [5, 8, 21, 24, 37])
def test_every_split_of_a_global_batch_sees_the_same_rows_at_each_step(n, strategy):
    """Accelerate deals micro-batches to processes in turn; 8 items a step, fewer in the last one."""
    mix = mixture(forget=n, retain=3)
    steps = {}
    for micro, processes, accumulation in SPLITS:
        sampler = order(
            mix, micro=micro, batches=processes * accumulation, processes=processes, strategy=strategy
        )
        shards = [
            list(
                BatchSamplerShard(
                    BatchSampler(sampler, micro, drop_last=False), processes, rank, even_batches=False
                )
            )
            for rank in range(processes)
        ]
        assert len({len(shard) for shard in shards}) == 1, (
            "every process takes the same number of micro-batches"
        )
        rows = [
            sorted(
                i
                for shard in shards
                for batch in shard[start : start + accumulation]
                for i in batch
                if i >= 0
            )
            for start in range(0, len(shards[0]), accumulation)
        ]
        steps[micro, processes, accumulation] = rows
    first = next(iter(steps.values()))
    assert len(first) == ceil(n / 8)
    assert all(rows == first for rows in steps.values()), steps


def test_orders_differ_by_epoch_and_seed_and_not_otherwise():
    mix = mixture(forget=30)
    base = list(order(mix))
    assert base == list(order(mix))
    assert [i - 30 for i in order(mix, epoch=1)] != base
    assert list(order(mix, seed=4)) != base


def test_grouping_by_length_saves_padding():
    mix = mixture(forget=130, retain=40)

    def padding(strategy):
        lengths = mix.lengths(0)
        steps = np.asarray(list(order(mix, micro=2, batches=5, strategy=strategy))).reshape(-1, 10)
        return sum(10 * lengths[step].max() - lengths[step].sum() for step in steps)

    assert padding("group_by_length") < padding("random") / 3
    assert [int(n) for n in mix.lengths(0)][:2] == [
        max(len(r["input_ids"]) for rows in mix[i].values() for r in rows) for i in (0, 1)
    ]


def test_another_process_draws_the_same():
    code = "from unlearnkit.data.permutations import permutation; print(permutation(9, 5, 'a', 2).tolist())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other.strip() == str(permutation(9, 5, "a", 2).tolist())


@pytest.mark.parametrize("epoch", [0, 3])
def test_tokens_seen_do_not_depend_on_the_split(epoch):
    """Also in the middle of an epoch, after its short last step, and whatever epoch the order is at."""
    mix = mixture(forget=11, retain=30)
    splits = [(8, 1, 1), (4, 2, 2), (2, 4, 2), (1, 8, 1)]
    orders = [
        EpochOrder(mix, micro_batch_size=m, num_micro_batches=b, num_processes=p, seed=3)
        for m, b, p in splits
    ]
    for one in orders:
        one.set_epoch(epoch)
    for steps in (0, 1, 2, 3, 6):
        assert len({one.tokens_seen(steps) for one in orders}) == 1
    whole = sum(len(r["input_ids"]) for n in range(22) for rows in mix[n].values() for r in rows)
    assert orders[0].tokens_seen(4) == whole
    assert orders[0].tokens_seen(0) == 0 < orders[0].tokens_seen(3) < whole
    assert all(one.epoch == epoch for one in orders)


@quick
@given(
    forget=size, retain=size, other=size, seed=seed, policy=policy, ratio=ratio, epoch=st.integers(0, 9),
    weighted=st.booleans(), data=st.data(),
)  # fmt: skip
def test_lengths_and_tokens_of_some_items(forget, retain, other, seed, policy, ratio, epoch, weighted, data):
    """They are found for many items at once, without reading a row; here item by item, from the rows."""
    if weighted:
        spec = MixSpec(weights={"forget": ratio, "other": 1.0}, epoch_size=50, epoch_policy=policy)
    else:
        spec = MixSpec(ratios={"retain": ratio}, epoch_policy=policy)
    mix = mixture(spec, seed=seed, forget=forget, retain=retain, other=other)
    items = np.asarray(data.draw(st.lists(st.integers(0, len(mix) - 1))), dtype=np.int64)
    sizes = [
        [len(r["input_ids"]) for rows in mix[epoch * len(mix) + i].values() for r in rows]
        for i in items.tolist()
    ]
    assert mix.lengths(epoch, items).tolist() == [max(one, default=0) for one in sizes]
    assert mix.tokens(epoch, items) == sum(map(sum, sizes))


def test_an_epoch_looks_at_the_lengths_of_a_step_when_it_comes_to_it(monkeypatch):
    asked = []
    mix = mixture(forget=100, retain=30)
    lengths = mix.lengths
    monkeypatch.setattr(
        mix, "lengths", lambda epoch, items=None: asked.append(items) or lengths(epoch, items)
    )
    taken = iter(order(mix, micro=2, batches=5))
    assert [next(taken) for _ in range(11)]
    assert [len(items) for items in asked] == [10, 10]


def test_long_permutations_are_not_all_remembered():
    permutations._remembered.clear()
    for key in range(8):
        permutation(permutations._MOST_NUMBERS // 4, key)
    kept = list(permutations._remembered)
    assert [key for _, key in kept] == [4, 5, 6, 7], "four of them hold as many numbers as are allowed"
    small = [permutation(9, key) for key in range(100)]
    assert len(permutations._remembered) == permutations._MOST
    assert permutation(9, 99) is small[99]
