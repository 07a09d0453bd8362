"""What `ll.head_of` finds on the models of a distillation, once for each."""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import logitless as ll
from logitless.integrations.transformers.layer import unwrapped


class Measured(NamedTuple):
    """What stays of a head; its parameters are looked up again."""

    vocab: int
    softcap: float | None
    logit_scale: float


_measured: WeakKeyDictionary[Any, Measured] = WeakKeyDictionary()


def measured(model: Any) -> Measured:
    """Of a model, wrapped or not. The first call is made by all ranks, outside of a forward."""
    inner = unwrapped(model)
    if inner not in _measured:
        found = ll.head_of(model)
        _measured[inner] = Measured(found.vocab, found.softcap, found.logit_scale)
    return _measured[inner]
