"""Decoding: what a row becomes depends on nothing but the row, and rows that have ended cost nothing."""

from __future__ import annotations

import copy
import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from unlearnkit.evaluation.decode import Sampling, can_decode, decode, greedy, sampler

PROMPTS = [[5, 9, 33], [7], [11, 12, 13, 14, 15, 16, 17], [200, 3]]


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        size = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64}
        config = LlamaConfig(
            **size, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.5, eos_token_id=None
        )
        return LlamaForCausalLM(config).eval()


def run(model, prompts, **options):
    options = {"max_new_tokens": 12, "stop": (), "pad_id": 0, **options}
    return decode(model, prompts, **options)


def test_greedy_is_that_of_generate(model):
    together = run(model, PROMPTS)
    for prompt, tokens in zip(PROMPTS, together, strict=True):
        ids = torch.tensor([prompt])
        config = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        assert tokens == out[0, len(prompt) :].tolist()


def test_a_row_ends_with_its_stop_token_and_the_others_go_on(model):
    free = run(model, PROMPTS)
    stop = {free[1][2], free[3][5]}
    found = run(model, PROMPTS, stop=stop)
    for tokens, whole in zip(found, free, strict=True):
        end = next((i for i, token in enumerate(whole) if token in stop), len(whole) - 1)
        assert tokens == whole[: end + 1]
    assert len({len(tokens) for tokens in found}) > 1


def test_ended_rows_leave_the_batch(model):
    """Of four rows two end with their first token, 299: every later forward pass has two rows."""
    shapes = []

    def pick(logits, rows, step):
        return torch.tensor([299 if row < 2 else int(logits[i, :299].argmax()) for i, row in enumerate(rows)])

    hook = model.register_forward_pre_hook(
        lambda m, a, kw: shapes.append(tuple(kw["input_ids"].shape)), with_kwargs=True
    )
    found = run(model, PROMPTS, stop={299}, pick=pick)
    hook.remove()
    assert [len(tokens) for tokens in found] == [1, 1, 12, 12]
    assert shapes[0] == (4, 7)
    assert set(shapes[1:]) == {(2, 1)}
    assert len(shapes) == 12


def test_samples_depend_on_their_names_and_the_seed_alone(model):
    names = ["a", "b", "a", "c"]
    sampling = Sampling(temperature=1.0, seed=4)
    prompts = [PROMPTS[0]] * 4
    found = run(model, prompts, pick=sampler(sampling, names, 12))
    assert found[0] == found[2] != found[1] != found[3]
    alone = [run(model, [p], pick=sampler(sampling, [n], 12))[0] for p, n in zip(prompts, names, strict=True)]
    assert alone == found
    other = run(model, prompts, pick=sampler(Sampling(seed=5), names, 12))
    assert other[0] != found[0]


def test_the_global_random_state_is_not_used(model):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = run(model, PROMPTS, pick=sampler(Sampling(), list("abcd"), 12))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert run(model, PROMPTS, pick=sampler(Sampling(), list("abcd"), 12)) == first


def test_samples_follow_the_distribution():
    """4,000 draws from p = (0.1, 0.2, 0.3, 0.4): each share within 4 standard deviations."""
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    count = 4000
    pick = sampler(Sampling(), [str(i) for i in range(count)], 1)
    drawn = pick(p.log().expand(count, 4), list(range(count)), 0).numpy()
    shares = np.bincount(drawn, minlength=4) / count
    assert np.abs(shares - p.numpy()).max() < 4 * np.sqrt(0.24 / count)


def test_a_uniform_number_that_rounds_up_draws_no_impossible_token(monkeypatch):
    """A draw at the very end of the distribution function still falls to a token with p > 0."""
    monkeypatch.setattr(torch, "rand", lambda n, **options: torch.full((n,), 1.0, dtype=torch.float64))
    logits = torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf]])
    for top_p in (1.0, 0.99):
        assert int(sampler(Sampling(top_p=top_p), ["x"], 1)(logits, [0], 0)) == 1


def test_all_of_top_p_needs_no_order():
    """At top-p 1 the tokens stand in the order of their ids: u in [0, 0.1) draws the first one."""
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    pick = sampler(Sampling(), [str(i) for i in range(400)], 1)
    drawn = pick(p.log().expand(400, 4), list(range(400)), 0)
    uniforms = []
    for i in range(400):
        digest = hashlib.blake2b(f"0|{i}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        uniforms.append(float(torch.rand(1, generator=generator, dtype=torch.float64)))
    assert drawn.tolist() == np.searchsorted(np.cumsum(p.double().numpy()), uniforms, side="right").tolist()


def test_temperature_squares_the_distribution_at_one_half():
    """At temperature 1/2 p becomes p^2 / sum p^2: (1, 4) / 5 of (1, 2) / 3."""
    count = 4000
    pick = sampler(Sampling(temperature=0.5), [str(i) for i in range(count)], 1)
    drawn = pick(torch.tensor([1 / 3, 2 / 3]).log().expand(count, 2), list(range(count)), 0)
    assert abs(float((drawn == 0).float().mean()) - 0.2) < 4 * np.sqrt(0.16 / count)


@given(
    st.lists(st.floats(0.01, 1.0), min_size=2, max_size=8), st.floats(0.05, 1.0), st.integers(0, 2**31 - 1)
)
@settings(max_examples=60, deadline=None)
def test_top_p_draws_from_the_smallest_set_that_holds_p(weights, top_p, seed):
    p = torch.tensor(weights, dtype=torch.float64)
    p = p / p.sum()
    order = p.argsort(descending=True, stable=True).tolist()
    kept, total = set(), 0.0
    for token in order:
        if total >= top_p - 1e-9:
            break
        kept.add(token)
        total += float(p[token])
    near = {t for t in order if t not in kept and abs(total - top_p) < 1e-6}  # a tie with rounding
    pick = sampler(Sampling(top_p=top_p, seed=seed), ["x"], 1)
    assert int(pick(p.log()[None], [0], 0)) in kept | near


def test_top_p_near_zero_is_greedy(model):
    found = run(model, PROMPTS, pick=sampler(Sampling(top_p=1e-9), list("abcd"), 12))
    assert found == run(model, PROMPTS, pick=greedy)


def test_what_is_left_to_generate(model):
    assert can_decode(model, {"do_sample", "temperature", "eos_token_id"})
    assert not can_decode(model, {"repetition_penalty"})
    own = copy.copy(model)
    own.__class__ = type("Own", (LlamaForCausalLM,), {"generate": lambda self, **options: None})
    assert not can_decode(own, ())
    assert not can_decode(torch.nn.Linear(2, 2), ())


def test_a_model_without_a_plain_cache_is_left_to_generate():
    config = MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4)
    model = MambaForCausalLM(config).eval()
    assert not can_decode(model, ()) or run(model, [[3, 4]]) is None
