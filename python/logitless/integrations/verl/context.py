"""What the engine knows of a micro-batch and verl does not hand to its losses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from torch import Tensor

import logitless as ll


class MicroBatch(NamedTuple):
    """Arrays of responses, [B, T]; None where the data have none."""

    # with the head's gradient
    entropy: Tensor | None
    ref_logp: Tensor | None
    rollout_logp: Tensor | None
    token_ids: Tensor
    # where the loss selects or needs means
    batch: ll.BatchStats | None
    # where the loss was made in the forward, in one pass with the head
    made: ll.PolicyLossOutput | None = None


_current: ContextVar[MicroBatch | None] = ContextVar("micro_batch", default=None)


def current() -> Any:
    """The micro-batch whose loss is being made; None in an engine that tells nothing."""
    return _current.get()


@contextmanager
def handed_over(micro_batch: MicroBatch) -> Iterator[None]:
    token = _current.set(micro_batch)
    try:
        yield
    finally:
        _current.reset(token)
