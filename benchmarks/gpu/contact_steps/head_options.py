"""T13: heads with an adapter, with the entropy of the likeliest tokens, and in a vocab_group."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.contact_steps.checks import CHUNK, Head, Truth, head_inputs, wide_dtype
from benchmarks.gpu.contact_steps.clock import (
    BF16,
    VOCAB,
    backends_here,
    bare,
    close,
    empty_caches,
    peak,
    predicted,
    traffic,
)
from benchmarks.gpu.contact_steps.heads import bare_products, of_bare
from benchmarks.gpu.contact_steps.tiling import AMPLE
from benchmarks.gpu.contact_worker import Cases, Fields, Leave, Place
from benchmarks.gpu.predict.options import RANK

SHAPE, TINY = (8192, 4096, VOCAB), (24, 16, 5000)
SCALE, TOP_P = 0.5, 0.8
# Of the largest true value: logits of 16 bits are rounded.
SHARE = 6e-2
Factors = tuple[Tensor, Tensor]  # A [RANK, H], B [V, RANK]
# [n, V] of float64, [n] -> logp, entropy
Rule = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def head_options(place: Place) -> Cases:
    n, h, v = TINY if place.tiny else SHAPE
    inputs = functools.lru_cache(maxsize=1)(lambda: head_inputs(n, h, v, BF16, place.device))
    found: dict[int, float] = {}
    yield "bare 3", functools.partial(bare_products, place, inputs, 3, found)
    for name, run in (("adapter", adapted), ("entropy_top_p", likeliest), ("vocab_group", grouped)):
        yield name, functools.partial(run, place, inputs, found)
    inputs.cache_clear()
    empty_caches(place)


def of_all(z: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    log_p = z.log_softmax(-1)
    return log_p.gather(-1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)


def of_likeliest(z: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The entropy of as few of a row's largest as have TOP_P of its probability, of them alone."""
    order = z.detach().argsort(dim=-1, descending=True, stable=True)
    p = z.detach().softmax(-1).gather(-1, order)
    inside = torch.zeros_like(z, dtype=torch.bool).scatter(-1, order, p.cumsum(-1) - p < TOP_P)
    log_q = z.masked_fill(~inside, -torch.inf).log_softmax(-1)
    held = torch.where(inside, log_q, 0.0)
    entropy = -(torch.where(inside, log_q.exp(), 0.0) * held).sum(-1)
    return of_all(z, targets)[0], entropy


def truth(x: Head, rule: Rule, factors: Factors | None = None) -> Truth:
    """Over all rows; d_weight, or that of B, of a few columns."""
    wide, columns = wide_dtype(x.hidden.device), x.columns()
    w = x.weight.to(wide)
    a, b = (f.to(wide) for f in factors) if factors else (w[:0], w[:, :0])
    w = w.addmm_(b, a, alpha=SCALE) if factors else w
    d_weight, d_a = w.new_zeros(len(columns), w.shape[1]), torch.zeros_like(a)
    parts: dict[str, list[Tensor]] = {"logp": [], "entropy": [], "d_hidden": []}
    for rows in torch.arange(len(x.hidden), device=w.device).split(CHUNK):
        h, up = x.hidden[rows].to(wide), x.upstream[rows].to(wide)
        z = (h @ w.t()).requires_grad_()
        logp, entropy = rule(z, x.targets[rows])
        (dz,) = torch.autograd.grad((up * (logp + entropy)).sum(), z)
        d_weight += dz[:, columns].t() @ h
        d_a += SCALE * (dz @ b).t() @ h
        found = {"logp": logp.detach(), "entropy": entropy.detach(), "d_hidden": dz @ w}
        for name, value in found.items():
            parts[name].append(value)
    right = {name: torch.cat(values) for name, values in parts.items()}
    if factors is None:
        return {**right, "d_weight": d_weight}
    return {**right, "d_a": d_a, "d_b": SCALE * d_weight @ a.t()}


def measured(
    place: Place, x: Head, op: str, bare_ms: dict[int, float], run: Callable[[], Fields],
    right: Truth,
) -> Fields:  # fmt: skip
    """Times and traffic of what is right."""
    found, held = peak(place, run)
    for name in found.keys() & {"d_weight", "d_b"}:
        found[name] = found[name][x.columns()]
    errors = {name: close(value, right[name].double(), SHARE) for name, value in found.items()}
    del found
    times, counts = bare(place, run), traffic(place, run)
    (n, h), v = x.hidden.shape, len(x.weight)
    return {
        **times, **of_bare(times, bare_ms, 3), **predicted(place, op, n, h, v), **counts,
        "errors": errors, "peak_bytes": held,
    }  # fmt: skip


def gradients(x: Head, leaves: dict[str, Tensor], stats: Any) -> Fields:
    up = (x.upstream, x.upstream)
    d = torch.autograd.grad((stats.logp, stats.entropy), list(leaves.values()), up)
    return {
        "logp": stats.logp.detach(), "entropy": stats.entropy.detach(),
        **dict(zip(leaves, d, strict=True)),
    }  # fmt: skip


def backend_of(place: Place, option: str) -> str:
    from logitless.backends import registry

    backend = next(b for b in backends_here(place) if b != "torch")
    support = registry.get(backend).has(option)
    if not support.ok:
        raise Leave(support.reason)
    return backend


def adapted(place: Place, inputs: Callable[[], Head], bare_ms: dict[int, float]) -> Fields:
    """Of a frozen weight."""
    import logitless as ll

    x, backend = inputs(), backend_of(place, "linear_token_stats")
    g = torch.Generator(place.device).manual_seed(3)
    a, b = (
        torch.randn(shape, generator=g, device=place.device).mul_(shape[1] ** -0.5).to(BF16)
        for shape in ((RANK, x.hidden.shape[1]), (len(x.weight), RANK))
    )

    def run() -> Fields:
        leaves = {"d_hidden": x.hidden, "d_a": a, "d_b": b}
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
        stats = ll.linear_token_stats(
            leaves["d_hidden"], x.weight, x.targets, memory_budget=AMPLE, backend=backend,
            adapter=(leaves["d_a"], leaves["d_b"], SCALE),
        )  # fmt: skip
        return gradients(x, leaves, stats)

    op = f"forward + backward, adapter of rank {RANK}"
    return measured(place, x, op, bare_ms, run, truth(x, of_all, (a, b)))


def likeliest(place: Place, inputs: Callable[[], Head], bare_ms: dict[int, float]) -> Fields:
    x, backend = inputs(), backend_of(place, "entropy_top_p")
    run = functools.partial(plain, x, backend, entropy_top_p=TOP_P)
    op = "forward + backward, entropy_top_p"
    return measured(place, x, op, bare_ms, run, truth(x, of_likeliest))


def plain(x: Head, backend: str, **options: Any) -> Fields:
    import logitless as ll

    leaves = {"d_hidden": x.hidden, "d_weight": x.weight}
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    stats = ll.linear_token_stats(
        leaves["d_hidden"], leaves["d_weight"], x.targets, memory_budget=AMPLE, backend=backend,
        **options,
    )  # fmt: skip
    return gradients(x, leaves, stats)


def grouped(place: Place, inputs: Callable[[], Head], bare_ms: dict[int, float]) -> Fields:
    """A group of this process alone, whose collectives are queued all the same."""
    x, backend = inputs(), backend_of(place, "vocab_group")
    with group_of_one(place) as group:
        run = functools.partial(plain, x, backend, vocab_group=group)
        op = "forward + backward, a group of one rank"
        return measured(place, x, op, bare_ms, run, truth(x, of_all))


@contextmanager
def group_of_one(place: Place) -> Iterator[Any]:
    import torch.distributed as dist

    name = "nccl" if place.cuda else "gloo"
    if not dist.is_available() or (place.cuda and not dist.is_nccl_available()):
        raise Leave(f"no {name}")
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(name, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield dist.group.WORLD
        finally:
            dist.destroy_process_group()
