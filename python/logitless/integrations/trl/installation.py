"""Replaces what TRL's trainers make of logits, and puts it back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

import logitless as ll
from logitless.integrations.trl import hooks


class Exchanged(NamedTuple):
    """An attribute of a module or a class: what TRL has there, and what this library put there."""

    holder: Any
    name: str
    theirs: Any
    ours: Any


# The function that gives models a head, TRL's and ours: all trainers' modules hold it.
_head: list[Callable[..., Any]] = []
_exchanged: list[Exchanged] = []
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

    GRPO, RLOO, SFT, DPO, KTO and what else gives its model a head by `add_fused_lm_head`; and the
    losses of its distillation trainers, whenever these were made: docs/trl.md has the table. Their
    metrics and arguments stay; log-probs, entropies, divergences and their gradients are the same
    but for rounding. A second call changes nothing; `with install():` lasts for its block. Trainers
    keep the head that they were made with; losses of distillation are this library's while it is
    installed.

    memory_budget: of the head's work, as in `ll.linear_token_stats`. By default logits of a
    micro-batch are kept for the backward where the budget of that op has room for them; a smaller
    one makes them again.

    Raises ImportError where TRL is missing, or is a version that is not known, or one in which one
    of these functions has another name or other parameters: then none is replaced; ValueError or
    TypeError for memory_budget, also where another is installed.
    """
    from logitless.integrations.trl.distillation.replaced import TABLE
    from logitless.integrations.trl.head import add_head

    hooks.check_version()
    given: dict[str, Any] = {}
    if memory_budget is not None:
        # it refuses what is no budget
        ll.plan(1, 1, 2, budget=memory_budget)
        given = {"memory_budget": memory_budget}
    if _head:
        if given != _options:
            raise ValueError(
                f"memory_budget must be the one that is installed, {_options.get('memory_budget')},"
                f" got {memory_budget}; call uninstall() first"
            )
        return Installation(made=False)
    theirs, ours = hooks.head_function(), partial(add_head, **given) if given else add_head
    hooks.output_class()
    losses = [_exchange_of(given, *row) for row in TABLE if hooks.importable(row.module)]
    _exchange_head(theirs, ours)
    for loss in losses:
        setattr(loss.holder, loss.name, loss.ours)
    _head[:], _exchanged[:] = [theirs, ours], losses
    _options.update(given)
    return Installation(made=True)


def uninstall() -> None:
    """Trainers that are made from now on have TRL's own head; nothing where none was installed."""
    if _head:
        theirs, ours = _head
        _exchange_head(ours, theirs)
    for holder, name, own, put in _exchanged:
        # whoever has replaced it since has the last word
        if vars(holder).get(name) is put:
            setattr(holder, name, own)
    _head.clear()
    _exchanged.clear()
    _options.clear()


def _exchange_of(
    options: dict[str, Any],
    module: str,
    name: str,
    parameters: tuple[str, ...],
    made: Callable[[Callable[..., Any], dict[str, Any]], Callable[..., Any]],
) -> Exchanged:
    theirs = hooks.function(module, name, parameters)
    *owner, attribute = name.split(".")
    holder = hooks.find(module, owner[0]) if owner else sys.modules[module]
    # a static method is found as a plain function
    held, ours = vars(holder)[attribute], made(theirs, options)
    return Exchanged(
        holder, attribute, held, staticmethod(ours) if isinstance(held, staticmethod) else ours
    )


def _exchange_head(old: Any, new: Any) -> None:
    """In all modules of TRL that hold it: they import it by name, and may be imported later."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "trl" and vars(module).get(hooks.HEAD) is old:
            setattr(module, hooks.HEAD, new)
