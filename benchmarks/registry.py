"""What is timed: each case makes its inputs, our op, plain torch, the floor, and the oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import logitless as ll
from logitless import reference

VOCAB = 151_936
Results = dict[str, Tensor]


@dataclass(frozen=True)
class Problem:
    """One case at one number of rows. Each function returns its results by name."""

    ours: Callable[[], Results]
    plain: Callable[[], Results]
    # The least any implementation must do: the reads and writes, or the bare matrix products.
    floor: Callable[[], Results]
    oracle: Callable[[], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Case:
    name: str
    rows: int
    make: Callable[[int], Problem]  # rows -> Problem
    work: float  # what the floor moves (bytes) or computes (FLOP), at `rows`
    unit: str


def plain_stats(logits: Tensor, targets: Tensor) -> Results:
    """What a trainer without us writes."""
    log_p = logits.float().log_softmax(-1)
    logp = log_p.gather(-1, targets[:, None])[:, 0]
    return {"logp": logp, "entropy": -(log_p.exp() * log_p).sum(-1)}


def our_stats(stats: ll.TokenStats) -> Results:
    return {"logp": stats.logp, "entropy": stats.entropy}


def with_gradients(results: Results, upstream: Tensor, **leaves: Tensor) -> Results:
    """`results` and the gradients of sum(upstream * (logp + entropy)) in the leaves."""
    outputs = [results["logp"], results["entropy"]]
    grads = torch.autograd.grad(outputs, list(leaves.values()), [upstream, upstream])
    return {**results, **{f"d{name}": g for name, g in zip(leaves, grads, strict=True)}}


def rows_case(dtype: torch.dtype, rows: int, backward: bool) -> Case:
    """Statistics of given logits; with `backward` their gradient too."""

    def make(n: int) -> Problem:
        g = torch.Generator().manual_seed(0)
        logits = (3.0 * torch.randn(n, VOCAB, generator=g)).to(dtype).requires_grad_(backward)
        targets = torch.randint(VOCAB, (n,), generator=g)
        upstream = torch.randn(n, generator=g)
        scratch = torch.empty_like(logits, requires_grad=False) if backward else None

        def finish(results: Results) -> Results:
            return with_gradients(results, upstream, logits=logits) if backward else results

        def floor() -> Results:
            data = logits.detach()
            row_max = data.amax(-1)
            if scratch is not None:
                torch.mul(data, 0.5, out=scratch)
            return {"row_max": row_max}

        def oracle() -> dict[str, np.ndarray]:
            z, t, up = logits.detach().double().numpy(), targets.numpy(), upstream.double().numpy()
            expected = reference.token_stats(z, t)
            if backward:
                grad, _ = reference.token_stats_backward(z, t, g_logp=up, g_entropy=up)
                expected["dlogits"] = grad
            return expected

        return Problem(
            ours=lambda: finish(our_stats(ll.token_stats(logits, targets))),
            plain=lambda: finish(plain_stats(logits, targets)),
            floor=floor,
            oracle=oracle,
        )

    # Forward reads the logits; backward reads them again and writes as many bytes of gradient.
    size = dtype.itemsize * rows * VOCAB
    kind = "forward+backward" if backward else "forward"
    name = f"rows {kind} [{rows}, {VOCAB}] {str(dtype).removeprefix('torch.')}"
    return Case(name, rows, make, size * (3 if backward else 1), "GB/s")


def linear_case(dtype: torch.dtype, rows: int, width: int) -> Case:
    """Statistics of hidden x weight and the gradients of both."""

    def make(n: int) -> Problem:
        g = torch.Generator().manual_seed(0)
        hidden = torch.randn(n, width, generator=g).to(dtype).requires_grad_()
        weight = (3.0 * width**-0.5 * torch.randn(VOCAB, width, generator=g)).to(dtype)
        weight.requires_grad_()
        targets = torch.randint(VOCAB, (n,), generator=g)
        upstream = torch.randn(n, generator=g)
        logits = torch.empty(n, VOCAB, dtype=dtype)

        def finish(results: Results) -> Results:
            return with_gradients(results, upstream, hidden=hidden, weight=weight)

        def floor() -> Results:
            h, w = hidden.detach(), weight.detach()
            torch.mm(h, w.t(), out=logits)
            return {"dhidden": logits @ w, "dweight": logits.t() @ h}

        def oracle() -> dict[str, np.ndarray]:
            h, w = (x.detach().double().numpy() for x in (hidden, weight))
            t, up = targets.numpy(), upstream.double().numpy()
            expected = reference.linear_token_stats(h, w, t)
            dh, dw, _ = reference.linear_token_stats_backward(h, w, t, g_logp=up, g_entropy=up)
            return {**expected, "dhidden": dh, "dweight": dw}

        return Problem(
            ours=lambda: finish(our_stats(ll.linear_token_stats(hidden, weight, targets))),
            plain=lambda: finish(plain_stats(hidden @ weight.t(), targets)),
            floor=floor,
            oracle=oracle,
        )

    # Three products of 2 * rows * width * V: the logits, dhidden and dweight.
    name = f"linear forward+backward N={rows} H={width} {str(dtype).removeprefix('torch.')}"
    return Case(name, rows, make, 3 * 2.0 * rows * width * VOCAB, "GFLOP/s")


CASES = [
    rows_case(torch.float32, 512, backward=False),
    rows_case(torch.bfloat16, 512, backward=False),
    rows_case(torch.float32, 512, backward=True),
    rows_case(torch.bfloat16, 512, backward=True),
    # A minibatch of the demo, and a head of a real small model.
    linear_case(torch.float32, 160, 64),
    linear_case(torch.bfloat16, 1024, 1024),
]
QUICK = [
    rows_case(torch.float32, 32, backward=True),
    linear_case(torch.float32, 32, 64),
]
