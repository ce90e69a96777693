"""A from-scratch tokenizer and a small Llama, for offline runs and tests.

Nothing is downloaded: the tokenizer is trained on the texts it is given, the weights are drawn from a seed.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING

from unlearnkit.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
SMALLEST_VOCABULARY = 256 + 3  # every byte, and the three special tokens
VOCABULARY_MULTIPLE = 8  # the embedding has a multiple of this many rows; the last few may stand for no token


def train_tokenizer(texts: Iterable[str], vocab_size: int = 4096) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; the same texts give the same tokenizer.

    Any text can be encoded and decoded without loss. BOS, EOS and padding are three different tokens; none is
    added by itself, and there is no chat template.

    Args:
        texts: what to learn the merges from.
        vocab_size: the most tokens to have, special ones included; few texts may give fewer.

    Raises:
        ModelError: `vocab_size` has no room for the 256 bytes and the special tokens.
        DataError: there is no text to learn from.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < SMALLEST_VOCABULARY:
        raise ModelError(
            f"vocab_size is {vocab_size}; a byte-level tokenizer needs at least {SMALLEST_VOCABULARY}"
        )
    corpus = (text for text in texts if text)
    first = next(corpus, None)
    if first is None:
        raise DataError("there is no text to train the tokenizer on; give at least one non-empty text")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain([first], corpus), trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


def create_model(
    tokenizer: PreTrainedTokenizerFast,
    *,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    intermediate_size: int | None = None,
    max_position_embeddings: int = 512,
    seed: int = 0,
) -> LlamaForCausalLM:
    """Draw a small Llama with tied embeddings from `seed`; the global random state is left as it was.

    Args:
        tokenizer: gives the vocabulary and the ids of the special tokens.
        intermediate_size: width of the gated MLP; when None, 8/3 of `hidden_size`, rounded up to 32s.
        max_position_embeddings: the longest sequence, in tokens.

    Raises:
        ModelError: `num_heads` does not divide `hidden_size` into heads of even width.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if hidden_size % (2 * num_heads):
        raise ModelError(
            f"hidden_size {hidden_size} cannot be split into {num_heads} heads of even width; "
            f"use a multiple of {2 * num_heads}"
        )
    config = LlamaConfig(
        vocab_size=_round_up(len(tokenizer), VOCABULARY_MULTIPLE),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size or _round_up(-(-hidden_size * 8 // 3), 32),
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(config, name))
    return model


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
