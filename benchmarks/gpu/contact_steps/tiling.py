"""Heads of ours at tile sizes of choice, beside those that the planner gives."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu.contact_steps.checks import Head
from benchmarks.gpu.contact_steps.clock import machine
from benchmarks.gpu.contact_worker import Fields, Place
from benchmarks.gpu.predict import model as predict

# A budget that is none.
AMPLE = "64GiB"
Run = Callable[..., Fields]
Tiling = Callable[[], AbstractContextManager[None]]


@contextmanager
def forced(rows: int, columns: int, kept: int = 0, chunk: int = 0) -> Iterator[None]:
    """The planner gives this tiling, whatever the budget."""
    from logitless.backends import registry
    from logitless.ops.head.planner.cost import Strategy

    chosen = Strategy(rows, columns, kept, chunk)
    changed = {}
    for name, backend in registry.BACKENDS.items():
        machine = functools.cache(
            lambda device, of=backend.machine: replace(
                of(device),
                strategies=lambda problem, one_pass: [chosen],
                # A tile of a few rows may be as wide as the others have bytes.
                weight_bytes=1 << 62,
            )
        )
        changed[name] = replace(backend, machine=machine)
    with mock.patch.dict(registry.BACKENDS, changed):
        yield


def tile_columns(place: Place, v: int, n: int, tile_bytes: int | None = None) -> int:
    """Of 16-bit logits, as predict.columns has it."""
    size = tile_bytes or (machine(place) or predict.MACHINES["H200"]).tile_bytes
    from logitless.backends.row_kernels.rows import BLOCK

    # The CPU's core takes whole blocks only.
    quantum = predict.QUANTUM if place.cuda else BLOCK
    return min(max(size // (n * 2) // quantum, 1) * quantum, v)


def stats_gradients(ll: Any, x: Head, budget: Any, backend: str, up: Any = None) -> Fields:
    """logp, entropy, d_hidden, d_weight of the statistics, for the upstream gradients of x."""
    h, w = x.hidden.detach().requires_grad_(), x.weight.detach().requires_grad_()
    stats = ll.linear_token_stats(h, w, x.targets, memory_budget=budget, backend=backend)
    up = x.upstream if up is None else up
    d_h, d_w = torch.autograd.grad((stats.logp, stats.entropy), (h, w), (up, up))
    return {"logp": stats.logp, "entropy": stats.entropy, "d_hidden": d_h, "d_weight": d_w}


def loss_gradients(ll: Any, x: Head, budget: Any, backend: str) -> Fields:
    """The same of the policy loss in one pass, at ratio 1: upstream gradients -advantage / N."""
    h, w = x.hidden.detach().requires_grad_(), x.weight.detach().requires_grad_()
    spec = ll.PolicyLossSpec(surrogate=ll.Clip(0.2, 0.2), aggregation="token-mean")
    everywhere = torch.ones_like(x.targets, dtype=torch.bool)
    out = ll.linear_policy_loss(
        h, w, x.targets, x.known["old"], -x.upstream * len(h), everywhere, spec,
        memory_budget=budget, backend=backend,
    )  # fmt: skip
    d_h, d_w = torch.autograd.grad(out.loss, (h, w))
    return {"logp": out.logp, "entropy": out.entropy, "d_hidden": d_h, "d_weight": d_w}
