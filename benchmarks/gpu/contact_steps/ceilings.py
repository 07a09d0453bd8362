"""T1: what the machine can do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.contact_steps.checks import few_rows
from benchmarks.gpu.contact_steps.clock import (
    BF16,
    F32,
    VOCAB,
    bare,
    close,
    empty_caches,
    flops_of,
    predicted,
    traffic,
)
from benchmarks.gpu.contact_worker import Cases, Fields, Leave, Place, lost


def ceilings(place: Place) -> Cases:
    tiny = place.tiny
    yield "machine", lambda: planners_machine(place)
    size = (1 << 16) if tiny else 1 << 30
    yield from memory(place, size)
    empty_caches(place)
    n, v = (24, 4500) if tiny else (8192, VOCAB)
    widths = (512, v) if tiny else (v, 16_896, 1536, 4096, 8448, 33_792, 65_536)
    for h in (16,) if tiny else (4096, 1024, 2048):
        head = functools.lru_cache(maxsize=1)(lambda h=h: operands(place, n, h, v))
        for width in widths:
            yield f"{n} x {h} x {width} bf16", functools.partial(product, place, head, width)
        for width in widths[:2]:
            wide = functools.partial(product, place, head, width, out_dtype=F32)
            yield f"{n} x {h} x {width} to f32", wide
        yield f"dX {n} x {v} x {h}", functools.partial(d_hidden, place, head)
        yield f"dW {v} x {n} x {h}", functools.partial(d_weight, place, head, n)
        yield f"addmm in f32, {h}", functools.partial(mixed_sum, place, head)
        for rows in (5, 3) if tiny else (1638, 655):
            yield f"dW {v} x {rows} x {h}", functools.partial(d_weight, place, head, rows)
        head.cache_clear()
        empty_caches(place)


def planners_machine(place: Place) -> Fields:
    """What the planner takes the device for, and whether torch has mixed products here."""
    from logitless.backends.gpus import GPUS, machine_of

    found = machine_of(f"{place.device}:0" if place.cuda else place.device)
    alike = [name for name, each in GPUS.items() if each.flops == found.flops]
    name = next(iter(alike), "unknown" if place.cuda else "CPU")
    return {"said": f"planned for as {name}, mixed products: {found.mixed_products}"}


def memory(place: Place, size: int) -> Cases:
    x = torch.zeros(size, dtype=BF16, device=place.device)
    y = torch.empty_like(x)

    def rate(run: Callable[[], Any], moved: int) -> Fields:
        found = bare(place, run)
        return {**found, "gb_s": moved / found["ms"] / 1e6}

    yield "copy", lambda: rate(lambda: y.copy_(x), 4 * size)
    yield "read", lambda: rate(lambda: x.view(-1, 4096).amax(-1), 2 * size)


def operands(place: Place, n: int, h: int, v: int) -> tuple[Tensor, Tensor, Tensor]:
    """hidden, weight, and logits to write."""
    g = torch.Generator(place.device).manual_seed(0)
    a = torch.randn(n, h, generator=g, device=place.device).to(BF16)
    b = torch.randn(v, h, generator=g, device=place.device).mul_(h**-0.5).to(BF16)
    return a, b, torch.zeros(n, v, dtype=BF16, device=place.device)


def product(
    place: Place, head: Callable[[], Any], width: int, out_dtype: torch.dtype | None = None
) -> Fields:
    a, b, z = head()
    w = b[:width]
    if out_dtype is None:
        out = z.view(-1)[: len(a) * width].view(len(a), width)

        def run() -> Any:
            return torch.mm(a, w.t(), out=out)

    else:
        out = torch.empty(len(a), width, dtype=out_dtype, device=a.device)

        def run() -> Any:
            return torch.mm(a, w.t(), out_dtype=out_dtype, out=out)

    try:
        run()
    except NotImplementedError as why:
        raise Leave(str(why).splitlines()[0]) from why
    few = few_rows(len(a), 4).to(a.device)
    error = close(out[few], a[few].double() @ w.double().t(), 2**-7)
    h = a.shape[1]
    note = predicted(place, "forward", len(a), h, width) if width == VOCAB else {}
    note = {"predicted_ms": note["floor_ms"]} if note else {}
    return {**flops_of(bare(place, run), 2.0 * len(a) * h * width), "error": error, **note}


def d_hidden(place: Place, head: Callable[[], Any]) -> Fields:
    a, b, z = head()
    z.normal_()
    out = torch.empty_like(a)

    def run() -> Any:
        return torch.mm(z, b, out=out)

    run()
    few = few_rows(len(a), 4).to(a.device)
    error = close(out[few], z[few].double() @ b.double(), 2**-7)
    return {**flops_of(bare(place, run), 2.0 * z.numel() * b.shape[1]), "error": error}


def d_weight(place: Place, head: Callable[[], Any], rows: int) -> Fields:
    a, b, z = head()
    part, upper = z[:rows], a[:rows]
    part.normal_()
    out = torch.empty_like(b)

    def run() -> Any:
        return torch.mm(part.t(), upper, out=out)

    run()
    few = few_rows(len(b), 4).to(a.device)
    error = close(out[few], part[:, few].double().t() @ upper.double(), 2**-7)
    return {**flops_of(bare(place, run), 2.0 * part.numel() * b.shape[1]), "error": error}


def mixed_sum(place: Place, head: Callable[[], Any]) -> Fields:
    """Whether a float32 sum takes 16-bit products, where it lies, and without a copy of it."""
    a, b, z = head()
    width = min(16_896, len(b))
    part, w = z.view(-1)[: len(a) * width].view(len(a), width), b[:width]
    part.normal_()
    total = torch.ones(len(a), b.shape[1], dtype=F32, device=a.device)

    def run() -> Any:
        return torch.addmm(total, part, w, out_dtype=F32, out=total)

    try:
        run()
    except (NotImplementedError, RuntimeError, TypeError) as why:
        if isinstance(why, torch.OutOfMemoryError) or lost(place):
            raise
        raise Leave(str(why).splitlines()[0]) from why
    few = few_rows(len(a), 4).to(a.device)
    error = close(total[few], 1 + part[few].double() @ w.double(), 1e-4)
    kernels = traffic(place, run)["kernels"]
    copies = [k["name"] for k in kernels if "copy" in k["name"].lower() or "Memcpy" in k["name"]]
    found = flops_of(bare(place, run), 2.0 * part.numel() * b.shape[1])
    return {**found, "error": error, "copies": copies}
