"""T4, T5: heads, between bare products and what others have, and by the size of their tiles."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.contact_steps.checks import Head, check_head, few_rows, head_inputs
from benchmarks.gpu.contact_steps.clock import (
    BF16,
    F32,
    HEADS,
    TINY_HEADS,
    VOCAB,
    backends_here,
    bare,
    close,
    empty_caches,
    flops_of,
    machine,
    peak,
    predicted,
    traffic,
)
from benchmarks.gpu.contact_steps.sparse import peaked_heads
from benchmarks.gpu.contact_steps.tiling import (
    AMPLE,
    Run,
    Tiling,
    forced,
    loss_gradients,
    stats_gradients,
    tile_columns,
)
from benchmarks.gpu.contact_worker import Cases, Fields, Leave, Place
from benchmarks.gpu.predict import model as predict


def heads(place: Place) -> Cases:
    sizes = TINY_HEADS if place.tiny else HEADS
    for n, h, v in sizes:
        inputs = functools.lru_cache(maxsize=1)(
            lambda n=n, h=h, v=v: head_inputs(n, h, v, BF16, place.device)
        )
        key = f"{n} x {h} x {v}"
        for name, run in head_cases(place, inputs, n, h, v):
            yield f"{key} {name}", run
        inputs.cache_clear()
        empty_caches(place)
        if (n, h, v) == sizes[0]:
            for name, run in peaked_heads(place, n, h, v, bare_products):
                yield f"{key} {name}", run
    yield "compiled", lambda: compiled_head(place)


def head_cases(place: Place, inputs: Callable[[], Head], n: int, h: int, v: int) -> Cases:
    """Ours at tiles of choice and as planned, between bare products and what others have."""
    import logitless as ll

    backend = next(b for b in backends_here(place) if b != "torch")
    columns = tile_columns(place, v, min(n, predict.USUAL_ROWS))
    bare_ms: dict[int, float] = {}
    for count in (1, 3, 4):
        yield f"bare {count}", functools.partial(bare_products, place, inputs, count, bare_ms)
    m = machine(place) or predict.MACHINES["H200"]
    share = predict.kept_share(m, predict.Shape(n, h, v))
    some = int(share * v) // columns * columns
    forward = functools.partial(head_forward, place, inputs, backend, bare_ms)
    backward = functools.partial(head_backward, place, inputs, backend, bare_ms)
    usual, loss = (functools.partial(run, ll) for run in (stats_gradients, loss_gradients))
    tiling = functools.partial(forced, n)
    all_kept = "forward + backward, all kept"
    yield "forward", functools.partial(forward, functools.partial(tiling, columns), "forward")
    # Name, tiling, the op of the prediction, products, what runs, its budget.
    ways: tuple[tuple[str, Tiling, str, float, Run, str], ...] = (
        ("keep, one tile", functools.partial(tiling, v, v), all_kept, 3, usual, AMPLE),
        ("as planned", nullcontext, "", 3, usual, AMPLE),
        ("one pass", functools.partial(tiling, v, 0, n), all_kept, 3, loss, AMPLE),
        ("recompute", functools.partial(tiling, columns), "forward + backward, recomputed", 4,
         usual, AMPLE),
        ("part kept", functools.partial(tiling, columns, some), "forward + backward in 1 GiB",
         4 - some / v, usual, AMPLE),
        ("20% of rows", functools.partial(tiling, columns, v), "forward + backward, 20% of rows",
         1.4, usual, AMPLE),
        ("as planned, 1GiB", nullcontext, "", 4, usual, "1GiB"),
        ("as planned, one pass", nullcontext, "", 3, loss, AMPLE),
    )  # fmt: skip
    for name, tiled, op, products, run, budget in ways:
        yield (
            name,
            functools.partial(
                backward, tiled, op, products, run, budget, active=0.2 if "20%" in name else 1.0
            ),
        )
    yield "forward, as planned", functools.partial(forward, nullcontext, "")
    yield "forward, float32 logits", functools.partial(forward, nullcontext, "", F32)
    yield "eager", functools.partial(other_head, place, inputs, bare_ms, "eager")
    for name in ("Liger", "Apple CCE", "TRL"):
        yield name, functools.partial(other_head, place, inputs, bare_ms, name)


def bare_products(
    place: Place, inputs: Callable[[], Head], count: int, found: dict[int, float]
) -> Fields:
    x = inputs()
    h, w = x.hidden, x.weight
    z = torch.empty(len(h), len(w), dtype=h.dtype, device=h.device)
    d_h, d_w = torch.empty_like(h), torch.empty_like(w)

    def run() -> None:
        for _ in range(2 if count == 4 else 1):
            torch.mm(h, w.t(), out=z)
        if count > 1:
            torch.mm(z, w, out=d_h)
            torch.mm(z.t(), h, out=d_w)

    times = bare(place, run)
    few = few_rows(len(h), 4).to(h.device)
    error = close(z[few], h[few].double() @ w.double().t(), 2**-7)
    found[count] = times["ms"]
    return {**flops_of(times, 2.0 * count * h.numel() * len(w)), "error": error}


def of_bare(found: Fields, bare_ms: dict[int, float], count: int) -> Fields:
    return {"of_bare": found["ms"] / bare_ms[count]} if count in bare_ms else {}


def head_forward(
    place: Place, inputs: Callable[[], Head], backend: str, bare_ms: dict[int, float],
    tiling: Tiling, op: str, logits_dtype: torch.dtype | None = None,
) -> Fields:  # fmt: skip
    import logitless as ll

    x = inputs()
    (n, h), v = x.hidden.shape, len(x.weight)

    def run() -> Fields:
        with torch.no_grad(), tiling():
            stats = ll.linear_token_stats(
                x.hidden, x.weight, x.targets, backend=backend, logits_dtype=logits_dtype
            )
        return {"logp": stats.logp, "entropy": stats.entropy}

    found, held = peak(place, run)
    errors = check_head(x, found)
    with tiling():
        plan = ll.plan(
            n, h, v, x.hidden.dtype, backward=False, logits_dtype=logits_dtype, device=place.device
        )
    note = predicted(place, op, n, h, v) if op else as_planned(place, plan)
    times = bare(place, run)
    return {
        **times, **of_bare(times, bare_ms, 1), **note, "errors": errors, "peak_bytes": held,
        "plan_bytes": plan.total_bytes, "tile": f"{plan.rows} x {plan.columns}",
    }  # fmt: skip


def as_planned(place: Place, plan: Any) -> Fields:
    """What the planner expects."""
    return {} if place.tiny or not place.cuda else {"predicted_ms": 1e3 * plan.expected_seconds}


def head_backward(
    place: Place, inputs: Callable[[], Head], backend: str, bare_ms: dict[int, float],
    tiling: Tiling, op: str, products: float, run: Run, budget: str,
    *, active: float,
) -> Fields:  # fmt: skip
    import logitless as ll

    x = inputs().active(active)
    (n, h), v = x.hidden.shape, len(x.weight)
    one_pass = getattr(run, "func", run) is loss_gradients

    if one_pass and "old" not in x.known:
        with torch.no_grad():
            old = ll.linear_token_stats(x.hidden, x.weight, x.targets, backend=backend).logp
        x.known["old"] = old

    def call() -> Fields:
        with tiling():
            return dict(run(x, budget, backend))

    with tiling():
        plan = ll.plan(n, h, v, x.hidden.dtype, budget, one_pass=one_pass, device=place.device)
    found, held = peak(place, call)
    outputs = sum(value.numel() * value.element_size() for value in found.values())
    errors = check_head(x, found, entropy=not one_pass)
    del found
    note = predicted(place, op, n, h, v) if op else as_planned(place, plan)
    times = bare(place, call)
    counts = traffic(place, call)
    counts.pop("kernels")
    return {
        **flops_of(times, 2.0 * products * n * h * v), **of_bare(times, bare_ms, 3), **note,
        "errors": errors, **counts, "peak_bytes": held, "outputs_bytes": outputs,
        "plan_bytes": plan.total_bytes, "mode": plan.mode, "products": plan.products,
        "tile": f"{plan.rows} x {plan.columns}",
    }  # fmt: skip


def plain_head(hidden: Tensor, weight: Tensor, targets: Tensor) -> Fields:
    log_p = (hidden @ weight.t()).float().log_softmax(-1)
    logp = log_p.gather(-1, targets[:, None])[:, 0]
    return {"logp": logp, "entropy": -(log_p.exp() * log_p).sum(-1)}


def other_head(
    place: Place, inputs: Callable[[], Head], bare_ms: dict[int, float], name: str
) -> Fields:
    if name == "eager":
        function: Callable[..., Fields] = plain_head
    else:
        from benchmarks.cases.contenders.peers import PEERS

        peer = next(each for each in PEERS if each.name == name)
        if not place.cuda and name != "TRL":
            raise Leave("needs a GPU")
        # Carried as a folder, it may have no record of its installation.
        try:
            function = peer.functions["head"]()
        except Exception as error:
            raise Leave(f"{type(error).__name__}: {error}"[:200]) from error
    x = inputs()
    (n, h), v = x.hidden.shape, len(x.weight)
    if place.cuda and name == "eager":
        free, needed = torch.cuda.mem_get_info()[0], 20 * n * v
        if needed > 0.9 * free:
            raise Leave(f"needs {needed >> 30} GiB")

    def run() -> Fields:
        a, b = x.hidden.detach().requires_grad_(), x.weight.detach().requires_grad_()
        found = function(a, b, x.targets)
        values = [found[key] for key in ("logp", "entropy") if key in found]
        d_h, d_w = torch.autograd.grad(values, (a, b), [x.upstream.to(y.dtype) for y in values])
        return {**found, "d_hidden": d_h, "d_weight": d_w}

    found, held = peak(place, run)
    # Others round more often than we do: by the tolerance of plain code, tenfold.
    errors = check_head(x, found, entropy="entropy" in found, slack=10.0)
    del found
    times = bare(place, run)
    return {
        **flops_of(times, 6.0 * n * h * v), **of_bare(times, bare_ms, 3), "errors": errors,
        "peak_bytes": held,
    }  # fmt: skip


def compiled_head(place: Place) -> Fields:
    if place.tiny or place.left < 45:
        raise Leave("no time to compile")
    n, h, v = HEADS[0]
    x = head_inputs(n, h, v, BF16, place.device)
    function = torch.compile(plain_head, dynamic=False, fullgraph=True)

    def run() -> Fields:
        a, b = x.hidden.detach().requires_grad_(), x.weight.detach().requires_grad_()
        found = function(a, b, x.targets)
        up = (x.upstream, x.upstream)
        d_h, d_w = torch.autograd.grad((found["logp"], found["entropy"]), (a, b), up)
        return {**found, "d_hidden": d_h, "d_weight": d_w}

    found, held = peak(place, run)
    errors = check_head(x, found, slack=10.0)
    del found
    return {**bare(place, run), "errors": errors, "peak_bytes": held}


def tuning(place: Place) -> Cases:
    """Forward, and backward without kept logits, by the bytes of a tile."""
    import logitless as ll

    n, v = (24, 5000) if place.tiny else (8192, VOCAB)
    backend = next(b for b in backends_here(place) if b != "torch")
    sizes = (128 << 10, 256 << 10) if place.tiny else tuple(mib << 20 for mib in
            (264, 24, 64, 128, 528, 1056, 2112))  # fmt: skip
    for h in (16,) if place.tiny else (4096, 1024, 2048):
        inputs = functools.lru_cache(maxsize=1)(
            lambda h=h: head_inputs(n, h, v, BF16, place.device)
        )
        alone: dict[int, float] = {}
        for count in (1, 4):
            run = functools.partial(bare_products, place, inputs, count, alone)
            yield f"H={h} bare {count}", run
        for size in sizes:
            columns = tile_columns(place, v, n, size)
            tiling = functools.partial(forced, n, columns)
            key = f"H={h} {columns} columns"
            op = functools.partial(head_forward, place, inputs, backend, alone, tiling, "")
            yield f"{key} forward", functools.partial(with_ratio, place, op, n, h, v, columns)
            yield f"{key} recompute", functools.partial(
                head_backward, place, inputs, backend, {3: alone.get(4, 0.0)} if 4 in alone else {},
                tiling, "", 4, functools.partial(stats_gradients, ll), "64GiB", active=1.0,
            )  # fmt: skip
        inputs.cache_clear()
        empty_caches(place)


def with_ratio(
    place: Place, op: Callable[[], Fields], n: int, h: int, v: int, columns: int
) -> Fields:
    found, m = op(), machine(place)
    if m is None or place.tiny:
        return found
    ratio = predict.over_bare(m, predict.Shape(n, h, v), columns)
    return {**found, "predicted_of_bare": 1 / ratio}
