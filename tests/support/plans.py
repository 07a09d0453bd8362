"""Plans of the head that a test forces, whatever the shapes."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

import logitless as ll
from logitless.backends import registry
from logitless.ops.head.planner.cost import Problem, Strategy

LEAVES = ("hidden", "weight")
APART = Strategy(16, 2048, 2048)
CHUNKS = {
    "whole": Strategy(1024, 2048, 0, 24),
    "tall": Strategy(4, 2048, 0, 10),
    "short": Strategy(5, 2048, 0, 5),
}


def machine(monkeypatch: pytest.MonkeyPatch, **numbers: Any) -> None:
    """Every backend on a machine of these numbers."""
    for name, backend in list(registry.BACKENDS.items()):
        changed = functools.cache(lambda device, of=backend.machine: replace(of(device), **numbers))
        monkeypatch.setitem(registry.BACKENDS, name, replace(backend, machine=changed))


@contextmanager
def products_of_16_bits() -> Iterator[None]:
    """This CPU has them, whether or not it does."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        machine(monkeypatch, widened=frozenset)
        yield


def force(monkeypatch: pytest.MonkeyPatch, *strategies: Strategy) -> None:
    """Whatever the shapes, one of these; of those in chunks where one pass is allowed."""

    def allowed(problem: Problem, one_pass: bool) -> list[Strategy]:
        return [s for s in strategies if one_pass or not s.chunk_rows]

    machine(monkeypatch, strategies=allowed)


def force_backward(monkeypatch: pytest.MonkeyPatch, strategy: Strategy) -> None:
    """This one where there is a backward that may take it, else the planner's own."""

    def allowed(problem: Problem, one_pass: bool) -> list[Strategy] | None:
        fits = problem.backward and (one_pass or not strategy.chunk_rows)
        return [strategy] if fits else None

    machine(monkeypatch, strategies=allowed)


def took_one_pass(out: ll.LinearPolicyLossOutput) -> bool:
    return "linear_policy_loss" in type(out.loss.grad_fn).__name__
