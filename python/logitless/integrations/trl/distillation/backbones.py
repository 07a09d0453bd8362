"""Trainers that run backbones alone, and multiply with the heads in a function of their module.

They take a backbone's last states for what the head reads, and softcap and scale out of configs,
and neither holds of every model. While the loss of such a trainer runs, the whole model runs for
its backbone, and the heads that were measured count.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any, NamedTuple

from torch import Tensor

from logitless.integrations.transformers.layer import (
    head_layer,
    in_place_of,
    no_columns,
    only_call,
    unwrapped,
)
from logitless.integrations.trl.call import HeadCall, head_call
from logitless.integrations.trl.distillation.measured import Measured, measured


class Head(NamedTuple):
    """Of a model without wrappers."""

    model: Any
    found: Measured

    def at(self, states: Tensor, temperature: float) -> HeadCall:
        return head_call(self.model, states, self.found, temperature)


class Heads(NamedTuple):
    """Of the models of a loss."""

    student: Head
    # None where a server has it
    teacher: Head | None


_open: ContextVar[Heads | None] = ContextVar("logitless_trl_heads", default=None)


def open_heads() -> Heads | None:
    """Those of the loss that runs now; none where its function is called by anyone else."""
    return _open.get()


class WithoutHead:
    """Stands for a model whose backbone is called."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def base_model(self, **inputs: Any) -> Any:
        """What the head reads in the whole forward, as the last states of the backbone."""
        layer = head_layer(unwrapped(self._model))
        # Not the one that accelerate puts there, whose autocast a backbone alone would not see.
        forward = vars(self._model).get("_original_forward", self._model.forward)
        with in_place_of(layer, lambda hidden: no_columns(layer, hidden)) as calls:
            forward(**inputs)
        hidden, _ = only_call(calls)
        return SimpleNamespace(last_hidden_state=hidden)


def compute_loss(theirs: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """Heads are measured before TRL's own method enters the forward of an engine."""

    @functools.wraps(theirs)
    def ours(self: Any, model: Any, *given: Any, **named: Any) -> Any:
        _heads(self, model)
        return theirs(self, model, *given, **named)

    return ours


def loss_of_unwrapped(theirs: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def ours(self: Any, unwrapped_model: Any, *given: Any, **named: Any) -> Any:
        token = _open.set(_heads(self, unwrapped_model))
        try:
            return theirs(self, WithoutHead(unwrapped_model), *given, **named)
        finally:
            _open.reset(token)

    return ours


def last_hidden_state(theirs: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """Of the teacher, which has a forward of its own; the student is without its head already."""

    @functools.wraps(theirs)
    def ours(self: Any, unwrapped_model: Any, *given: Any, **named: Any) -> Any:
        if not isinstance(unwrapped_model, WithoutHead):
            unwrapped_model = WithoutHead(unwrapped_model)
        return theirs(self, unwrapped_model, *given, **named)

    return ours


def _heads(trainer: Any, model: Any) -> Heads:
    teacher = getattr(trainer, "teacher_model", None)
    student, *others = (Head(unwrapped(x), measured(x)) for x in (model, teacher) if x is not None)
    return Heads(student, others[0] if others else None)
