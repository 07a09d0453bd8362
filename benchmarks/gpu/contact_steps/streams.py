"""T7: a second stream, and CUDA graphs."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.contact_steps.checks import Head, head_inputs
from benchmarks.gpu.contact_steps.clock import (
    BF16,
    HEADS,
    TINY_HEADS,
    VOCAB,
    backends_here,
    bare,
    close,
)
from benchmarks.gpu.contact_steps.tiling import tile_columns
from benchmarks.gpu.contact_worker import Cases, Fields, Leave, Place


def streams(place: Place) -> Cases:
    yield "row kernels on a second stream", lambda: second_stream(place)
    yield "forward in a CUDA graph", lambda: graph(place)
    for op in ("linear_token_stats", "linear_policy_loss"):
        for share in (0.625, None):
            kind = "all rows" if share is None else "active_capacity"
            run = functools.partial(graphed_head, place, op, share)
            yield f"{op}, forward and backward in a CUDA graph, {kind}", run
    yield "capture of a cold kernel", lambda: cold_capture(place)


def second_stream(place: Place) -> Fields:
    """Forward of tiles by hand: the row kernel of one while the product of the next runs."""
    place.need_gpu()
    from logitless.backends import registry
    from logitless.backends.row_kernels.rows import STATE, Rows

    n, h, v = (24, 16, 5000) if place.tiny else HEADS[0]
    x = head_inputs(n, h, v, BF16, place.device)
    columns, backend = tile_columns(place, v, n), backends_here(place)[0]
    scratch = [torch.empty(n * columns, dtype=BF16, device=place.device) for _ in range(2)]
    side = torch.cuda.Stream()

    def run(apart: bool) -> Tensor:
        main = torch.cuda.current_stream()
        other = side if apart else main
        other.wait_stream(main)
        state = torch.empty(n, STATE, dtype=torch.float64, device=place.device)
        with torch.cuda.stream(other):
            rows = Rows(registry.get(backend), n, x.targets)
            rows.kernels  # noqa: B018  on this stream
        free: list[Any] = [None, None]
        for i, start in enumerate(range(0, v, columns)):
            width = min(columns, v - start)
            tile = scratch[i % 2][: n * width].view(n, width)
            if free[i % 2] is not None:
                main.wait_event(free[i % 2])
            torch.mm(x.hidden, x.weight[start : start + width].t(), out=tile)
            other.wait_stream(main)
            with torch.cuda.stream(other):
                rows.forward(tile, state, start=start, first=start == 0)
                free[i % 2] = other.record_event()
        main.wait_stream(other)
        return state

    states = [run(apart) for apart in (False, True)]
    torch.cuda.synchronize()
    if not torch.equal(states[0].nan_to_num(), states[1].nan_to_num()):
        raise AssertionError("the two give different states")
    one, two = (bare(place, functools.partial(run, apart)) for apart in (False, True))
    return {"ms": two["ms"], "one_stream_ms": one["ms"], "columns": columns}


def graph(place: Place) -> Fields:
    place.need_gpu()
    import logitless as ll

    n, v = (12, 4500) if place.tiny else (8192, VOCAB)
    z = torch.empty(n, v, dtype=BF16, device=place.device).normal_()
    t = torch.randint(v, (n,), device=place.device)

    def run() -> Any:
        return ll.token_stats(z, t)

    with torch.no_grad():
        eager = run()
        torch.cuda.synchronize()
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            stats = run()
        captured.replay()
        torch.cuda.synchronize()
        if not torch.equal(stats.logp, eager.logp):
            raise AssertionError("a replay gives another logp")
        found = bare(place, captured.replay)
        return {**found, "eager_ms": bare(place, run)["ms"]}


def graphed_head(place: Place, op: str, share: float | None) -> Fields:
    """Half of the tokens active, with room for this share of all; None: captured as it is called,
    which takes all of them. What a replay gives for another mask is what a call that counts
    gives."""
    place.need_gpu()
    from logitless.backends import registry

    n, h, v = TINY_HEADS[0] if place.tiny else HEADS[0]
    x = head_inputs(n, h, v, BF16, place.device)
    if op == "linear_policy_loss" and registry.token_kernels_of(x.upstream).on_host:
        raise Leave("the loss of this backend is made on the host")
    mask = torch.arange(n, device=place.device) % 2 == 0
    capacity = None if share is None else int(share * n)
    run = functools.partial(head_step, op, x, mask)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(capacity)
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        found = run(capacity)
    error = 0.0
    for _ in range(2):
        captured.replay()
        right = run(None)
        error = max(error, *(close(a, b.double(), 0.02) for a, b in zip(found, right, strict=True)))
        mask.logical_not_()
    again = bare(place, captured.replay)
    return {**again, "eager_ms": bare(place, lambda: run(None))["ms"], "error": error}


def head_step(op: str, x: Head, mask: Tensor, capacity: int | None) -> list[Tensor]:
    """logp and the gradients of hidden and weight."""
    import logitless as ll

    h, w = leaves = [t.detach().requires_grad_() for t in (x.hidden, x.weight)]
    options: dict[str, Any] = {"active_capacity": capacity}
    if op == "linear_token_stats":
        stats = ll.linear_token_stats(h, w, x.targets, mask=mask, **options)
        return [stats.logp, *torch.autograd.grad(stats.logp.dot(x.upstream), leaves)]
    # on-policy
    out = ll.linear_policy_loss(
        h, w, x.targets, None, x.upstream, mask, ll.presets["ppo"], **options
    )
    return [out.logp, *torch.autograd.grad(out.loss, leaves)]


def cold_capture(place: Place) -> Fields:
    """What capturing says where a kernel was never called before, in a process of its own."""
    place.need_gpu()
    program = (
        "import torch, logitless as ll, sys\n"
        "z = torch.randn(4, 999, device='cuda')\n"
        "t = torch.zeros(4, dtype=torch.int64, device='cuda')\n"
        "if sys.argv[2] == 'warm': ll.warm('cuda', z.dtype, vocab=999, backend=sys.argv[1])\n"
        "ll.token_stats(z.half(), t, backend=sys.argv[1]); torch.cuda.synchronize()\n"
        "g = torch.cuda.CUDAGraph()\n"
        "with torch.cuda.graph(g): s = ll.token_stats(z, t, softcap=9.0, backend=sys.argv[1])\n"
        "g.replay(); print('captured', float(s.logp.sum()))\n"
    )
    said = {}
    for backend in backends_here(place):
        for kind in ("cold", "warm") if backend != "torch" else ():
            answer = subprocess.run(
                [sys.executable, "-c", program, backend, kind], capture_output=True, text=True,
                timeout=max(place.left, 5), check=False,
            )  # fmt: skip
            lines = (answer.stdout + answer.stderr).strip().splitlines()
            said[f"{backend} {kind}"] = lines[-1][:160] if lines else ""
    return {"said": said}
