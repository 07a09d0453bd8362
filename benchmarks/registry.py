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


def head_inputs(n: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden [n, width], weight [VOCAB, width], targets [n], and a random float [n]."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, width, generator=g).to(dtype).requires_grad_()
    weight = (3.0 * width**-0.5 * torch.randn(VOCAB, width, generator=g)).to(dtype)
    targets = torch.randint(VOCAB, (n,), generator=g)
    return hidden, weight.requires_grad_(), targets, torch.randn(n, generator=g)


def three_products(hidden: Tensor, weight: Tensor) -> Callable[[], Results]:
    """The logits, and the two products with their gradient: nothing with a head does less."""
    h, w = hidden.detach(), weight.detach()
    logits = torch.empty(len(h), len(w), dtype=h.dtype)

    def run() -> Results:
        torch.mm(h, w.t(), out=logits)
        return {"dhidden": logits @ w, "dweight": logits.t() @ h}

    return run


def head_oracle(
    hidden: Tensor, weight: Tensor, targets: Tensor, g_logp: np.ndarray, g_entropy: np.ndarray
) -> dict[str, np.ndarray]:
    h, w = (x.detach().double().numpy() for x in (hidden, weight))
    upstream = {"g_logp": g_logp, "g_entropy": g_entropy}
    dh, dw, _ = reference.linear_token_stats_backward(h, w, targets.numpy(), **upstream)
    return {"dhidden": dh, "dweight": dw}


def head_scores(hidden: Tensor, weight: Tensor, targets: Tensor) -> dict[str, np.ndarray]:
    h, w = (x.detach().double().numpy() for x in (hidden, weight))
    return reference.linear_token_stats(h, w, targets.numpy())


def linear_case(dtype: torch.dtype, rows: int, width: int) -> Case:
    """Statistics of hidden x weight and the gradients of both."""

    def make(n: int) -> Problem:
        hidden, weight, targets, upstream = head_inputs(n, width, dtype)

        def finish(results: Results) -> Results:
            return with_gradients(results, upstream, hidden=hidden, weight=weight)

        def oracle() -> dict[str, np.ndarray]:
            up = upstream.double().numpy()
            grads = head_oracle(hidden, weight, targets, up, up)
            return {**head_scores(hidden, weight, targets), **grads}

        return Problem(
            ours=lambda: finish(our_stats(ll.linear_token_stats(hidden, weight, targets))),
            plain=lambda: finish(plain_stats(hidden @ weight.t(), targets)),
            floor=three_products(hidden, weight),
            oracle=oracle,
        )

    name = f"linear forward+backward N={rows} H={width} {str(dtype).removeprefix('torch.')}"
    return Case(name, rows, make, 3 * 2.0 * rows * width * VOCAB, "GFLOP/s")


def policy_case(dtype: torch.dtype, rows: int, width: int) -> Case:
    """The PPO loss of hidden x weight and its gradients; half the advantages are zero, as those of
    groups that are all right or all wrong."""
    spec = ll.presets["ppo"]

    def make(n: int) -> Problem:
        hidden, weight, targets, advantages = head_inputs(n, width, dtype)
        advantages[: n // 2] = 0.0
        mask = torch.ones(n, dtype=torch.bool)
        scores = head_scores(hidden[:8], weight, targets[:8])["logp"].mean()
        # Ratios on both sides of the clip.
        old_logp = torch.full((n,), float(scores))

        def gradients(loss: Tensor) -> Results:
            dhidden, dweight = torch.autograd.grad(loss, [hidden, weight])
            return {"loss": loss, "dhidden": dhidden, "dweight": dweight}

        def ours() -> Results:
            data = (targets, old_logp, advantages, mask)
            return gradients(ll.linear_policy_loss(hidden, weight, *data, spec).loss)

        def plain() -> Results:
            stats = plain_stats(hidden @ weight.t(), targets)
            ratio = (stats["logp"] - old_logp).exp()
            gain = torch.minimum(advantages * ratio, advantages * ratio.clamp(0.8, 1.2))
            return gradients(-gain.mean())

        def oracle() -> dict[str, np.ndarray]:
            logp = head_scores(hidden, weight, targets)["logp"]
            data = (old_logp.double().numpy(), advantages.double().numpy(), mask.numpy())
            loss, _, g_logp, g_entropy = reference.policy_loss(logp, *data, spec)
            grads = head_oracle(hidden, weight, targets, g_logp, g_entropy)
            return {"loss": np.array(loss), **grads}

        return Problem(ours, plain, three_products(hidden, weight), oracle)

    name = f"policy loss+backward N={rows} H={width} {str(dtype).removeprefix('torch.')}"
    return Case(name, rows, make, 3 * 2.0 * rows * width * VOCAB, "GFLOP/s")


CASES = [
    rows_case(torch.float32, 512, backward=False),
    rows_case(torch.bfloat16, 512, backward=False),
    rows_case(torch.float32, 512, backward=True),
    rows_case(torch.bfloat16, 512, backward=True),
    # A minibatch of the demo, and a head of a real small model.
    linear_case(torch.float32, 160, 64),
    policy_case(torch.float32, 160, 64),
    linear_case(torch.bfloat16, 1024, 1024),
]
QUICK = [
    rows_case(torch.float32, 32, backward=True),
    linear_case(torch.float32, 32, 64),
    policy_case(torch.float32, 32, 64),
]
