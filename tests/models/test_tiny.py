"""The from-scratch tokenizer and model: deterministic, lossless, and without side effects."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearnkit.errors import DataError, ModelError
from unlearnkit.models.tiny import create_model, train_tokenizer

TEXTS = [f"Question: Who wrote book {i}?\nAnswer: The author of book {i} is Mira Vel." for i in range(30)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocab_size=300)


def test_same_texts_give_the_same_tokenizer(tokenizer):
    again = train_tokenizer(iter(TEXTS), vocab_size=300)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


@pytest.mark.parametrize("text", ["Mira Vel", " two  spaces ", "Žižek 東京 🙂\n\ttab", "it 's , ok .", ""])
def test_any_text_survives_and_nothing_is_added(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_special_tokens_are_distinct_and_encoded_as_one(tokenizer):
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert tokenizer("a" + tokenizer.eos_token).input_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.chat_template is None


def test_vocabulary_is_at_most_what_was_asked():
    assert len(train_tokenizer(TEXTS, vocab_size=300)) == 300
    assert 259 <= len(train_tokenizer(["ab"], vocab_size=4096)) <= 260


def test_saved_and_loaded_again(tokenizer, tmp_path):
    model = create_model(tokenizer, hidden_size=16, num_layers=1, num_heads=2, seed=3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = TEXTS[0] + tokenizer.eos_token
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert loaded(text).input_ids == ids[0].tolist()
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=0)
    assert again.generation_config.eos_token_id == tokenizer.eos_token_id


def test_seed_decides_the_weights_and_the_global_state_is_untouched(tokenizer):
    shape = {"hidden_size": 16, "num_layers": 2, "num_heads": 2}
    before = torch.get_rng_state()
    one = create_model(tokenizer, **shape, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    same, other = create_model(tokenizer, **shape, seed=1), create_model(tokenizer, **shape, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_config_of_the_model(tokenizer):
    model = create_model(tokenizer, hidden_size=48, num_layers=1, num_heads=2, max_position_embeddings=64)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.config.vocab_size == 304
    assert model.config.intermediate_size == 128
    assert model.config._attn_implementation == "sdpa"
    assert model.config.max_position_embeddings == 64
    for config in (model.config, model.generation_config):
        assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)


def test_mistakes_are_explained(tokenizer):
    with pytest.raises(ModelError, match="at least 259"):
        train_tokenizer(TEXTS, vocab_size=100)
    with pytest.raises(DataError, match="no text"):
        train_tokenizer([""])
    with pytest.raises(ModelError, match="multiple of 6"):
        create_model(tokenizer, hidden_size=16, num_layers=1, num_heads=3)
