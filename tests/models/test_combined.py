"""Networks served as one: what `forward` gives, with and without a cache, and what `generate` makes of it."""

from __future__ import annotations

import math

import pytest
import torch
from helpers_families import (
    EOS,
    FAMILIES,
    LAYERS,
    PAD,
    TOLERANCE,
    VOCABULARY,
    build,
    left,
    pair,
    prompts,
    shared_pair,
    trained,
)
from torch import nn
from transformers import DynamicCache

from unlearnkit.models.assistant import build_assistant
from unlearnkit.models.combined.combination import combine, kept_tokens
from unlearnkit.models.combined.modeling_combined import CombinedForCausalLM, ULDForCausalLM

every_family = pytest.mark.parametrize("family", FAMILIES)
ROWS = prompts()
NEW = 7


def generate(model, rows=ROWS, *, seed=None, **options):
    """New tokens of each row, cut after EOS."""
    batch = left(rows)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed or 0)
        settings = {"do_sample": seed is not None, "max_new_tokens": NEW, "pad_token_id": PAD, **options}
        found = model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :].tolist()
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in found]


def alone(model, rows=ROWS, **options):
    """Logits of each row without padding."""
    with torch.no_grad():
        return [model(torch.tensor([row]), **options).logits[0] for row in rows]


# ---- One forward pass --------------------------------------------------------------------------------------


@every_family
@torch.no_grad()
def test_forward_is_the_formula_on_the_two_models(family):
    target = build(family)
    assistant = trained(build_assistant(target, 2))
    model = ULDForCausalLM.pair(target, assistant, alpha=0.7, top_logit_filter=0.1)
    for row in ROWS:
        ids = torch.tensor([row])
        z = [target(ids).logits, assistant(ids).logits]
        for filtered in ("neutral", "removed"):
            found = model(ids, filtered=filtered).logits
            expected = combine(z, (1, -0.7), filter_rate=0.1, filtered=filtered)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected, **TOLERANCE)
        assert torch.isfinite(model(ids).logits).all()


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_changes_no_row(family, side):
    model, batch = shared_pair(family), left(ROWS)
    if side == "right":
        batch = {
            name: torch.stack([row.roll(-int(row.eq(0).sum())) for row in t]) for name, t in batch.items()
        }
    logits = model(**batch).logits
    assert torch.isfinite(logits).all()
    for found, mask, expected in zip(logits, batch["attention_mask"].bool(), alone(model), strict=True):
        torch.testing.assert_close(found[mask], expected, **TOLERANCE)


@torch.no_grad()
def test_logits_to_keep_and_each_networks_own():
    model, batch = shared_pair("Llama"), left(ROWS)
    whole = model(**batch).logits
    torch.testing.assert_close(model(**batch, logits_to_keep=2).logits, whole[:, -2:], **TOLERANCE)
    places = torch.tensor([1, 4])
    torch.testing.assert_close(model(**batch, logits_to_keep=places).logits, whole[:, places], **TOLERANCE)
    output = model(**batch, return_networks=True)
    assert output.logits is None
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    for network, logits in zip(model.networks.values(), output.network_logits, strict=True):
        assert torch.equal(logits, network(**batch, position_ids=positions).logits)
    assert torch.equal(model.combine(output.network_logits), whole)
    removed = model.combine(output.network_logits, filtered="removed")
    assert torch.equal(removed, model(**batch, filtered="removed").logits)
    other = model.combine(output.network_logits, weights={"target": 1.0, "assistant": 0.0})
    assert torch.equal(other, output.network_logits[0].log_softmax(-1))


@torch.no_grad()
def test_half_precision_networks_give_float32_logits():
    model, batch = pair(), left(ROWS)
    exact = model(**batch).logits
    model.bfloat16()
    found = model(**batch).logits
    assert found.dtype == torch.float32
    assert 0 < (found.softmax(-1) - exact.softmax(-1)).abs().mean() < 0.02


def test_gradients_reach_the_target_and_not_a_frozen_assistant():
    model, batch = pair(), left(ROWS)
    model(**batch).logits.log_softmax(-1)[..., 3].sum().backward()
    target, assistant = model.networks["target"], model.networks["assistant"]
    assert all(torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0 for p in target.parameters())
    assert not any(p.requires_grad for p in assistant.parameters())
    model.train()
    assert target.training
    assert not assistant.training


# ---- Identities --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [None, 0.1])
def test_with_weight_0_the_target_answers(rate):
    model = pair(top_logit_filter=rate)
    model.config.weights = {"target": 1.0, "assistant": 0.0}
    target = model.networks["target"]
    assert generate(model) == generate(target)
    for found, logits in zip(alone(model), alone(target), strict=True):
        torch.testing.assert_close(found, logits.log_softmax(-1), **TOLERANCE)


@pytest.mark.parametrize("rate", [None, 0.1])
def test_a_uniform_assistant_changes_nothing(rate):
    target = build()
    assistant = build_assistant(target, 1, lora=None)
    assistant.lm_head = nn.Linear(32, VOCABULARY, bias=False)
    nn.init.zeros_(assistant.lm_head.weight)
    model = ULDForCausalLM.pair(target, assistant, alpha=2.0, top_logit_filter=rate)
    assert generate(model) == generate(target)
    if rate is None:  # beams of the filtered search hold fewer tokens
        assert generate(model, num_beams=3) == generate(target, num_beams=3)
    for found, logits in zip(alone(model), alone(target), strict=True):
        torch.testing.assert_close(found.softmax(-1), logits.softmax(-1), **TOLERANCE)


def test_the_target_as_its_own_assistant_is_the_target_at_another_temperature():
    """log p - 0.75 log p = log p / 4; at temperature 1/4 that is the target again."""
    target = build()
    assistant = build_assistant(target, LAYERS, lora=None)
    model = ULDForCausalLM.pair(target, assistant, top_logit_filter=None)
    assert generate(model) == generate(target)
    assert generate(model, seed=1, temperature=0.25, top_k=0) == generate(target, seed=1, top_k=0)


# ---- The cache ---------------------------------------------------------------------------------------------


@every_family
@torch.no_grad()
def test_token_by_token_as_at_once(family):
    """Prompts longer than the window, padded on the left; the cache is the caller's own or the model's."""
    model, batch = shared_pair(family), left(prompts((11, 13, 14)))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    whole = model(**batch).logits
    cache = None
    for start, end in [(0, 8), (8, 9), (9, 10), (10, 12), (12, 14)]:
        out = model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        valid = mask[:, start:end].bool()
        torch.testing.assert_close(out.logits[valid], whole[:, start:end][valid], **TOLERANCE)
    assert cache.get_seq_length() == 14
    assert len(cache.layers) == LAYERS + 2


@torch.no_grad()
def test_a_filled_cache_counts_without_use_cache():
    model, ids = shared_pair("Llama"), torch.tensor([ROWS[1]])
    whole = model(ids).logits
    cache = DynamicCache()
    model(ids[:, :5], past_key_values=cache, use_cache=True)
    found = model(ids[:, 5:], past_key_values=cache, use_cache=False, attention_mask=torch.ones_like(ids))
    torch.testing.assert_close(found.logits, whole[:, 5:], **TOLERANCE)
    assert found.past_key_values is None
    assert model(ids).past_key_values is None


@torch.no_grad()
@pytest.mark.parametrize("kind", ["static", "offloaded_static"])
def test_other_kinds_of_caches_are_refused_and_not_filled_wrongly(kind):
    """Views of a static cache would share what each network counts for itself."""
    with pytest.raises(ValueError, match="need a DynamicCache of whole keys and values"):
        generate(shared_pair("Gemma2"), cache_implementation=kind)


def test_a_cache_of_another_model_is_refused():
    model, ids = shared_pair("Llama"), torch.tensor([ROWS[1]])
    cache = model.networks["target"](ids, use_cache=True).past_key_values
    with pytest.raises(
        ValueError, match="the cache has 4 layers, and the networks have 6 together; leave out"
    ):
        model(ids, past_key_values=cache, use_cache=True)


# ---- Generation --------------------------------------------------------------------------------------------

WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "sampling": {"seed": 3, "top_k": 0, "temperature": 1.5},
}


@every_family
@pytest.mark.parametrize("way", WAYS)
def test_generation_with_a_cache_as_without_and_a_row_as_alone(family, way):
    model, options = shared_pair(family), WAYS[way]
    cached = generate(model, **options)
    assert cached == generate(model, use_cache=False, **options)
    if "seed" not in options:  # draws depend on the batch
        assert cached == [generate(model, [row], **options)[0] for row in ROWS]
        assert cached != generate(model.networks["target"], **options)


@pytest.mark.parametrize("rate", [0.1, None])
@torch.no_grad()
def test_no_filtered_token_is_generated(rate):
    """At a temperature at which all tokens are drawn alike, and most would be filtered."""
    model = pair(top_logit_filter=rate)
    seen = []
    for seed in range(3):
        for row, new in zip(ROWS, generate(model, seed=seed, temperature=50.0, top_k=0), strict=True):
            logits = model.networks["target"](torch.tensor([row + new])).logits[0, len(row) - 1 : -1]
            seen += kept_tokens(logits.log_softmax(-1), 0.1)[torch.arange(len(new)), new].tolist()
    assert len(seen) > 30
    assert all(seen) == (rate is not None)


# ---- Made of what ------------------------------------------------------------------------------------------


def test_alpha_is_read_and_set():
    model = pair(alpha=0.5)
    assert model.alpha == 0.5
    assert model.config.weights == {"target": 1.0, "assistant": -0.5}
    before = alone(model)[0]
    model.alpha = 1.5
    assert model.alpha == 1.5
    assert not torch.allclose(alone(model)[0], before, atol=0.1)
    for wrong in (0, -0.5, math.inf, math.nan):
        with pytest.raises(ValueError, match="alpha must be a number above 0, found"):
            model.alpha = wrong
        with pytest.raises(
            ValueError, match=r"alpha must be a number above 0, found .*; 0\.75 is a good start"
        ):
            pair(alpha=wrong)
    assert model.alpha == 1.5


def test_refused_in_words():
    target = build()
    for rate in (1, -0.1, 3, math.nan):
        with pytest.raises(
            ValueError, match=r"top_logit_filter must lie between 0 and 1, found .*; use 0\.01, or 0"
        ):
            pair(top_logit_filter=rate)
    with pytest.raises(
        ValueError, match=r"different vocabularies \(target 61, assistant 60 tokens\); take models"
    ):
        ULDForCausalLM.pair(target, build(vocab_size=60))
    with pytest.raises(
        ValueError, match=r"networks are \['base', 'tuned'\] and weights \['base'\]; .* in this order"
    ):
        CombinedForCausalLM.of({"base": target, "tuned": target}, {"base": 1.0}, kind="offset")


@torch.no_grad()
def test_three_networks():
    """Of different sizes, with one vocabulary: base + 0.5 (tuned - untuned), no filter."""
    base = build("Llama", num_hidden_layers=3)
    tuned, untuned = build("Mistral", seed=1), build("Mistral", seed=2)
    networks = {"base": base, "tuned": tuned, "untuned": untuned}
    model = CombinedForCausalLM.of(networks, {"base": 1.0, "tuned": 0.5, "untuned": -0.5}, kind="offset")
    s = [torch.stack([one[-1] for one in alone(net)]).log_softmax(-1) for net in networks.values()]
    found = torch.stack([one[-1] for one in alone(model)])
    torch.testing.assert_close(found, s[0] + 0.5 * (s[1] - s[2]), **TOLERANCE)
    assert generate(model) == generate(model, use_cache=False)
    assert generate(model, num_beams=3) == generate(model, num_beams=3, use_cache=False)
    same = CombinedForCausalLM.of({**networks, "untuned": tuned}, model.config.weights, kind="offset")
    assert generate(same) == generate(base)
