"""One cache for several networks: the first network's layers first, and a view of its own for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_GROWING = (DynamicLayer, DynamicSlidingWindowLayer)


def _kind(cache: Any) -> str:
    return "/".join(dict.fromkeys([type(cache).__name__, *(type(layer).__name__ for layer in cache.layers)]))


def new_layers(networks: Sequence[Any]) -> list[list[Any]]:
    """Empty layers for the keys and values of each network, sliding windows where it has them."""
    return [DynamicCache(config=network.config).layers for network in networks]


def views(cache: Any, networks: Sequence[Any], sizes: Sequence[int]) -> list[Any]:
    """A cache for each network on the layers of `cache`: what is done to its rows reaches all of them.

    An empty cache gets its layers here.

    Args:
        sizes: each network's number of layers.

    Raises:
        ValueError: a cache with another number of layers, or of another kind than a growing one.
    """
    if type(cache) is not DynamicCache or any(type(layer) not in _GROWING for layer in cache.layers):
        raise ValueError(
            f"networks that are served as one need a DynamicCache of whole keys and values, found "
            f"{_kind(cache)}; leave out cache_implementation and past_key_values"
        )
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
