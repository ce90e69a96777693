"""One cache for several networks: the first network's layers first, and a view of its own for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.cache_utils import DynamicCache


def new_layers(networks: Sequence[Any]) -> list[list[Any]]:
    """Empty layers for the keys and values of each network, sliding windows where it has them."""
    return [DynamicCache(config=network.config).layers for network in networks]


def views(cache: Any, networks: Sequence[Any], sizes: Sequence[int]) -> list[Any]:
    """A cache for each network on the layers of `cache`: what is done to its rows reaches all of them.

    An empty cache gets its layers here.

    Args:
        sizes: each network's number of layers.

    Raises:
        ValueError: a cache with another number of layers.
    """
    if cache.get_seq_length() == 0:
        cache.layers[:] = [layer for layers in new_layers(networks) for layer in layers]
        cache.layer_class_to_replicate = None
    if len(cache.layers) != sum(sizes):
        raise ValueError(
            f"the cache has {len(cache.layers)} layers, and the networks have {sum(sizes)} together; leave "
            "out past_key_values, or give an empty DynamicCache"
        )
    found, start = [], 0
    for size in sizes:
        view = DynamicCache()
        view.layers, view.layer_class_to_replicate = cache.layers[start : start + size], None
        found.append(view)
        start += size
    return found
