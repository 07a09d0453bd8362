"""The cache of a model that goes on with its sequences: keys and values, recurrent states, or both.

What a class of transformers makes of it is measured, by `rollout.check_cache`.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor


def new_cache(model: Any) -> Any:
    """An empty one: of the model's own class, where its module has one, as MiniMax's."""
    from transformers import DynamicCache

    module = sys.modules[type(model).__module__]
    for kind in vars(module).values():
        ours = isinstance(kind, type) and kind.__module__ == module.__name__
        if ours and issubclass(kind, DynamicCache):
            return kind()
    return DynamicCache(config=model.config)


def keep_rows(cache: Any, index: Tensor) -> None:
    """The cache of these sequences, in this order; some may be there several times."""
    from transformers import Cache

    # a class that holds states beside its layers selects them itself
    if type(cache).batch_select_indices is not Cache.batch_select_indices:
        cache.batch_select_indices(index)
        return
    # layers of recurrent states know this one alone
    for layer in cache.layers:
        layer.reorder_cache(index)


def is_recurrent(cache: Any) -> bool:
    """Whether its model has no attention at all."""
    kinds = getattr(cache, "is_linear", [])
    return bool(kinds) and all(kinds)
