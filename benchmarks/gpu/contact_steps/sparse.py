"""T4: a head of peaked rows, exact and with tail_mass, beside its bare products.

The kernels are those that serve the device; one case has those of the other backends.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.cases.peaked_head import peaked_head
from benchmarks.gpu.contact_steps.checks import Head, check_head
from benchmarks.gpu.contact_steps.clock import (
    backends_here,
    bare,
    empty_caches,
    flops_of,
    peak,
    predicted,
    traffic,
)
from benchmarks.gpu.contact_steps.tiling import AMPLE
from benchmarks.gpu.contact_worker import Cases, Fields, Leave, Place
from benchmarks.harness.case import Case

# tail_mass -> the op of the prediction
TAILS = {0.0: "", 1e-3: "forward + backward, tail_mass 1e-3", 1e-2: ""}


def peaked_heads(place: Place, n: int, h: int, v: int, bare_3: Callable[..., Fields]) -> Cases:
    """`bare_3` times three bare products of a head, and keeps their time."""
    inputs = functools.lru_cache(maxsize=1)(lambda: peaked_inputs(place, n, h, v))
    found: dict[int, float] = {}
    yield "peaked, bare 3", lambda: bare_3(place, inputs, 3, found)
    first, *others = (b for b in backends_here(place) if b != "torch")
    for tail, op in TAILS.items():
        name, run = f"peaked, tail_mass {tail:g}", functools.partial(served_head, place, inputs)
        yield name, functools.partial(run, first, tail, 64, op, found)
        if tail == 1e-3:
            yield f"{name}, 1024 entries", functools.partial(run, first, tail, 1024, "", found)
            for other in others:
                yield f"{name}, {other}", functools.partial(run, other, tail, 64, op, found)
    inputs.cache_clear()
    peaked_head.cache_clear()
    empty_caches(place)


def peaked_inputs(place: Place, n: int, h: int, v: int) -> Head:
    x = peaked_head(Case(n, v, h, "bfloat16", device=place.device))
    g = torch.Generator(place.device).manual_seed(1)
    upstream = torch.randn(n, generator=g, device=place.device) / n
    return Head(x.hidden, x.weight, x.targets, upstream)


def gradients(ll: Any, x: Head, backend: str, **options: Any) -> Fields:
    h, w = x.hidden.detach().requires_grad_(), x.weight.detach().requires_grad_()
    stats = ll.linear_token_stats(
        h, w, x.targets, memory_budget=AMPLE, backend=backend, extras=("dropped_mass",), **options
    )
    d_h, d_w = torch.autograd.grad((stats.logp, stats.entropy), (h, w), (x.upstream, x.upstream))
    mass = stats.extras["dropped_mass"]
    return {"logp": stats.logp, "entropy": stats.entropy, "d_hidden": d_h, "d_weight": d_w,
            "mass": mass}  # fmt: skip


def served_head(
    place: Place, inputs: Callable[[], Head], backend: str, tail: float, entries: int, op: str,
    bare_ms: dict[int, float],
) -> Fields:  # fmt: skip
    import logitless as ll
    from logitless.backends import registry

    support = registry.get(backend).has("tail_mass")
    if tail and not support.ok:
        raise Leave(support.reason)
    x = inputs()
    (n, h), v = x.hidden.shape, len(x.weight)
    options: dict[str, Any] = {"tail_mass": tail, "tail_entries": entries} if tail else {}

    def call() -> Fields:
        return gradients(ll, x, backend, **options)

    plan = ll.plan(n, h, v, x.hidden.dtype, AMPLE, one_pass=False, device=place.device, **options)
    found, held = peak(place, call)
    outputs = sum(value.numel() * value.element_size() for value in found.values())
    served = float((found.pop("mass") <= tail).float().mean()) if tail else 0.0
    # What is dropped is far below what 16-bit logits round away.
    errors = check_head(x, found)
    del found
    times = bare(place, call)
    ratio = {"of_bare": times["ms"] / bare_ms[3]} if 3 in bare_ms else {}
    note = predicted(place, op, n, h, v) if op else {}
    return {
        **flops_of(times, 6.0 * n * h * v), **ratio, **note, **traffic(place, call),
        "errors": errors, "served": served, "peak_bytes": held, "outputs_bytes": outputs,
        "plan_bytes": plan.total_bytes, "tile": f"{plan.rows} x {plan.columns}",
    }  # fmt: skip
