"""Names of data and tokenizers by what they hold, found without holding it in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unlearnkit.files import fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

#: Rows of a table that are read together.
ROWS_AT_A_TIME = 256


def content(table: Dataset, columns: Sequence[str] | None = None) -> str:
    """Names rows by what stands in them, without holding them in memory.

    Args:
        columns: look at these alone.
    """
    names = sorted(table.column_names if columns is None else columns)
    digest = hashlib.blake2b(json.dumps(names).encode(), digest_size=8)
    for batch in table.select_columns(names).iter(ROWS_AT_A_TIME):
        for values in zip(*(batch[name] for name in names), strict=True):
            for value in values:
                text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
                data = text.encode()
                digest.update(len(data).to_bytes(8, "little"))
                digest.update(data)
    return digest.hexdigest()


def tokenizer_identity(tokenizer: Any) -> str:
    """Names what decides the tokens of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary: Any = sorted(tokenizer.get_vocab().items())
    if backend is not None:
        # A call that pads or truncates leaves its settings behind, which change no token of a whole text.
        vocabulary = {**json.loads(backend.to_str()), "truncation": None, "padding": None}
    return fingerprint(type(tokenizer).__name__, vocabulary, tokenizer.special_tokens_map)
