"""T3: rows of given logits."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.contact_steps.checks import CHECKED, Truth, few_rows, row_truth, worst
from benchmarks.gpu.contact_steps.clock import (
    BF16,
    F32,
    ROWS,
    SHORT,
    TINY_ROWS,
    backends_here,
    bare,
    clock,
    empty_caches,
    peak,
    predicted,
)
from benchmarks.gpu.contact_worker import Cases, Fields, Place


@dataclass(frozen=True)
class Logits:
    z: Tensor  # [N, V]
    scratch: Tensor  # as much memory, to write
    targets: Tensor
    upstream: Tensor
    few: Tensor  # rows that are checked
    truth: Truth  # of those

    @property
    def bytes(self) -> int:
        return self.z.numel() * self.z.itemsize

    def rated(self, found: Fields, passes: int) -> Fields:
        return {**found, "gb_s": passes * self.bytes / found["ms"] / 1e6}


def logits(n: int, v: int, dtype: torch.dtype, device: str) -> Logits:
    g = torch.Generator(device).manual_seed(0)
    z = torch.empty(n, v, dtype=dtype, device=device).normal_(0, 3, generator=g)
    t = torch.randint(v, (n,), generator=g, device=device)
    up = torch.randn(n, generator=g, device=device)
    few = few_rows(n, CHECKED).to(device)
    truth = row_truth(z[few].double(), t[few], up[few], up[few])
    return Logits(z, torch.empty_like(z), t, up, few, truth)


def rows(place: Place) -> Cases:
    n, v = TINY_ROWS if place.tiny else ROWS
    for dtype in (BF16, F32):
        yield from rows_of(place, logits(n, v, dtype, place.device), SHORT[dtype])
        empty_caches(place)


def rows_of(place: Place, x: Logits, name: str) -> Cases:
    yield f"{name} read (max)", lambda: x.rated(bare(place, lambda: x.z.amax(-1)), 1)
    yield f"{name} copy", lambda: x.rated(bare(place, lambda: x.scratch.copy_(x.z)), 2)
    for backend in backends_here(place):
        where = "" if backend == "torch" else "in place "
        yield f"{name} forward {backend}", functools.partial(row_forward, place, backend, x)
        back = functools.partial(row_backward, place, backend, x)
        yield f"{name} backward {where}{backend}", back


def row_forward(place: Place, backend: str, x: Logits) -> Fields:
    import logitless as ll

    @torch.no_grad()
    def run() -> ll.TokenStats:
        return ll.token_stats(x.z, x.targets, backend=backend)

    stats, bytes_held = peak(place, run)
    few = {"logp": stats.logp[x.few], "entropy": stats.entropy[x.few]}
    error = worst(few, x.truth, x.z.dtype)
    del stats
    found = x.rated(bare(place, run), 1)
    n, v = x.z.shape
    note = predicted(place, "rows forward", n, 1, v, x.z.dtype)
    return {**found, "error": error, "peak_bytes": bytes_held, **note}


def row_backward(place: Place, backend: str, x: Logits) -> Fields:
    import logitless as ll

    leaf = torch.zeros((), dtype=x.z.dtype, device=x.z.device, requires_grad=True)

    def prepare() -> tuple[Any, Tensor]:
        made: Tensor = Written.apply(leaf, x.z, x.scratch)  # type: ignore[no-untyped-call]
        stats = ll.token_stats(
            made, x.targets, backend=backend, inplace_backward=backend != "torch"
        )
        return (stats.logp, stats.entropy), made

    def run(prepared: Any) -> Tensor:
        outputs, made = prepared
        up = x.upstream.to(outputs[0].dtype)
        found: Tensor = torch.autograd.grad(outputs, made, (up, up))[0]
        return found

    gradient = run(prepare())
    error = worst({"dlogits": gradient[x.few]}, x.truth, x.z.dtype)
    del gradient
    found = x.rated(clock(place, run, prepare), 2)
    n, v = x.z.shape
    note = predicted(place, "rows backward in place", n, 1, v, x.z.dtype)
    return {**found, "error": error, **note}


class Written(torch.autograd.Function):
    """Logits that an op has made in given memory: neither a leaf nor what another op has saved, so
    that a backward may write there."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, z: Tensor, memory: Tensor) -> Tensor:
        return memory.detach().copy_(z)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0].sum(), None, None
