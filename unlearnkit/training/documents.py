"""Streams of documents: tokens in memory or on the disk, and what their settings do not go together with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unlearnkit.data.corpus import stored
from unlearnkit.data.documents import is_documents
from unlearnkit.data.formats import Template, Tokenized, Tokenizer, tokenize_stream
from unlearnkit.data.parts import row_lengths, stream_of, streams_of
from unlearnkit.data.token_stats import check_selectors
from unlearnkit.errors import DataError, RecipeError
from unlearnkit.training.objective import Objective, reference_streams
from unlearnkit.training.reference import cache_folder
from unlearnkit.training.selective import data_selectors

if TYPE_CHECKING:
    from unlearnkit.training.config import UnlearnConfig

logger = logging.getLogger(__name__)


def tokenized(
    data: Any, tokenizer: Any, template: Template, args: UnlearnConfig, objective: Objective, part: str
) -> Tokenized:
    """The tokens of one part, of which the objective's selectors choose the targets.

    Raises:
        DataError: as `data.formats.Tokenizer`.
    """
    selectors = data_selectors(objective, part)
    check_selectors(selectors, data, f"data.{part}")
    if args.documents_on_disk and is_documents(data):
        maker = Tokenizer(tokenizer, template, max_length=args.max_length, name=part, selectors=selectors)
        return stored(data, maker, cache_folder() / "corpora")
    return tokenize_stream(
        data, tokenizer, template, name=part, max_length=args.max_length, truncate=args.truncate,
        selectors=selectors,
    )  # fmt: skip


def refuse_documents(
    args: UnlearnConfig, objective: Objective, streams: Mapping[str, Any], reference: str
) -> None:
    """Check that the settings of documents have documents to work on, and a reference that goes with them.

    Args:
        streams: canonical rows; what could not be reached is missing.
        reference: the provider's name (see `training/reference.py`).

    Raises:
        DataError, RecipeError: they have not.
    """
    if not args.pack_documents and not args.documents_on_disk:
        return
    read = streams_of(objective.streams)
    documents = [name for name in read if name in streams and is_documents(streams[name])]
    if not documents and all(name in streams for name in read):
        raise DataError(
            f"data.documents is for streams of documents, but no row of data.{', data.'.join(read)} is a "
            "`text` without a prompt; give such a stream (or `join` answers to documents), or leave it out"
        )
    asked = [s for s in map(stream_of, reference_streams(objective)) if s in documents]
    if args.documents_on_disk and reference == "cached" and asked:
        raise RecipeError(
            "training.reference: cached puts log-probs beside the rows in memory, but the documents of "
            f"data.{asked[0]} lie on the disk; set training.reference: frozen, or leave out "
            "data.documents.on_disk"
        )


def refuse_beyond_positions(tokens: Mapping[str, Tokenized], config: Any) -> None:
    """Check that no example has more tokens than the model has positions.

    Args:
        tokens: by part.
        config: the model's; without `max_position_embeddings` nothing is known.

    Raises:
        DataError: one has more.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int):
        return
    for part, one in tokens.items():
        if (longest := int(row_lengths(one.rows).max(initial=0))) > positions:
            raise DataError(
                f"data.{part} has an example of {longest:,} tokens, but the model has {positions:,} "
                f"positions; set data.max_length to {positions} or less"
            )


def say_if_padded(args: UnlearnConfig, *, packed: bool) -> None:
    """Warn that blocks do not save what they could."""
    if args.pack_documents and not packed:
        logger.warning(
            "data.documents.pack: rows of this model are padded, because its attention is not known to keep "
            "packed rows apart (or training.packing is never); losses are the same, but a block takes more "
            "memory and time than its tokens need"
        )
