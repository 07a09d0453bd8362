"""Replaces what TRL's trainers make of logits, and puts it back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

import logitless as ll
from logitless.integrations.trl import hooks

# Names, and under each TRL's function and ours that stands in its place.
_replaced: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {}
# What they were made with.
_options: dict[str, Any] = {}


class Installation:
    """What `install` returns: as a context manager it uninstalls at the end of its block."""

    def __init__(self, made: bool) -> None:
        self._made = made

    def __enter__(self) -> Installation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._made:
            uninstall()


def install(*, memory_budget: int | str | None = None) -> Installation:
    """TRL's trainers that are made from now on score tokens with this library.

    GRPO, RLOO, SFT, DPO, KTO and what else gives its model a head by `add_fused_lm_head`; and
    DistillationTrainer, whenever it was made. Their losses, metrics and arguments stay; log-probs,
    entropies, divergences and their gradients are the same but for rounding. A second call changes
    nothing; `with install():` lasts for its block. Trainers keep the head that they were made with;
    the divergence is this library's while it is installed.

    memory_budget: of the head's work, as in `ll.linear_token_stats`. By default logits of a
    micro-batch are kept for the backward where the budget of that op has room for them; a smaller
    one makes them again.

    Raises ImportError where TRL is missing, or is a version whose function has another name or
    other parameters; ValueError or TypeError for memory_budget, also where another is installed.
    """
    from logitless.integrations.trl.distillation import divergence_loss
    from logitless.integrations.trl.head import add_head

    given: dict[str, Any] = {}
    if memory_budget is not None:
        # it refuses what is no budget
        ll.plan(1, 1, 2, budget=memory_budget)
        given = {"memory_budget": memory_budget}
    if _replaced:
        if given != _options:
            raise ValueError(
                f"memory_budget must be the one that is installed, {_options.get('memory_budget')},"
                f" got {memory_budget}; call uninstall() first"
            )
        return Installation(made=False)
    found: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        hooks.HEAD: (hooks.head_function(), with_options(add_head, given)),
        hooks.DIVERGENCE: (hooks.divergence_function(), with_options(divergence_loss, given)),
    }
    hooks.output_class()
    for name, (theirs, ours) in found.items():
        _exchange(name, theirs, ours)
    _replaced.update(found)
    _options.update(given)
    return Installation(made=True)


def with_options(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """The function itself where there is none."""
    return partial(function, **options) if options else function


def uninstall() -> None:
    """Trainers that are made from now on have TRL's own head; nothing where none was installed."""
    for name, (theirs, ours) in _replaced.items():
        _exchange(name, ours, theirs)
    _replaced.clear()
    _options.clear()


def _exchange(held: str, old: Any, new: Any) -> None:
    """In all modules of TRL that hold it: they import it by name, and may be imported later."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "trl" and vars(module).get(held) is old:
            setattr(module, held, new)
