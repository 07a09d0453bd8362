"""T6: losses of a million tokens, and what they ask of the whole batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor

from benchmarks.gpu.contact_steps.clock import F32, bare, close, predicted, traffic
from benchmarks.gpu.contact_worker import Cases, Fields, Leave, Place

TOKENS, TINY_TOKENS = 1 << 20, 512
T = TypeVar("T")


def losses(place: Place) -> Cases:
    from benchmarks.cases.contenders.ours import our_loss, our_selecting
    from benchmarks.cases.specs import CLIP_COV, KL_COV

    n = TINY_TOKENS if place.tiny else TOKENS
    ours: dict[str, Callable[..., Fields]] = {
        "policy": our_loss,
        "clip_cov": functools.partial(our_selecting, spec=CLIP_COV),
        "kl_cov": functools.partial(our_selecting, spec=KL_COV),
    }
    for name, function in ours.items():
        yield f"{name}, {n} tokens", functools.partial(one_loss, place, function, n)
    for name, spec in (("clip_cov", CLIP_COV), ("kl_cov", KL_COV)):
        run = functools.partial(batch_stats, spec=spec)
        case = functools.partial(same, place, run, n, "statistics of a batch")
        yield f"batch_stats of {name}, {n} tokens", case
    case = functools.partial(same, place, covariance, n, "covariance of a batch")
    yield f"covariance, {n} tokens", case
    # as where there is no compiled core
    run = functools.partial(batch_stats, spec=CLIP_COV)
    of_batch: dict[str, Callable[..., list[Any]]] = {
        "batch_stats of clip_cov": run, "covariance": covariance,
    }  # fmt: skip
    for by, where in (("by triton", by_triton), ("in torch", in_torch)):
        for name, function in ours.items():
            case = functools.partial(one_loss, place, function, n, where=where)
            yield f"{name} {by}, {n} tokens", case
        for name, what in of_batch.items():
            case = functools.partial(same, place, what, n, where=where)
            yield f"{name} {by}, {n} tokens", case


def as_it_is(run: Callable[..., T], *arguments: Any) -> T:
    return run(*arguments)


def in_torch(run: Callable[..., T], *arguments: Any) -> T:
    """By torch's operations, whatever else serves the tokens."""
    from logitless.backends.token_kernels.torch_tokens import torch_tokens

    return by_kernels(torch_tokens, run, *arguments)


def by_triton(run: Callable[..., T], *arguments: Any) -> T:
    """By Triton's kernels, where they run."""
    from logitless.backends import registry

    device = str(arguments[0].logp.device)
    why = registry.why_not("triton", device)
    if why:
        raise Leave(f"triton: {why}")
    from logitless.backends.token_kernels.triton_tokens import triton_tokens

    return by_kernels(triton_tokens, run, *arguments)


def by_kernels(make: Callable[[str], Any], run: Callable[..., T], *arguments: Any) -> T:
    """By the token kernels of a device that `make` has."""
    from logitless.backends import registry

    def kernels(like: Any, *, custom: bool = False) -> Any:
        return make(str(like.device))

    with mock.patch.object(registry, "token_kernels_of", kernels):
        return run(*arguments)


def tokens_of(place: Place, n: int) -> tuple[Any, Any]:
    """Drawn once and moved: what the CPU makes of the same tokens is the truth."""
    from benchmarks.cases.inputs import TokenInputs, token_inputs
    from benchmarks.harness.case import Case

    there = token_inputs(Case(rows=n, device="cpu"))
    return TokenInputs(*(x.to(place.device) for x in vars(there).values())), there


def batch_stats(tokens: Any, spec: Any) -> list[Any]:
    import logitless as ll

    data = (tokens.old_logp, tokens.advantages, tokens.mask)
    ids = torch.arange(len(tokens.logp), device=tokens.logp.device)
    found = ll.batch_stats(*data, spec, token_ids=ids, seed=0, step=0)
    return [found.mean_advantage, found.mean_logp, found.count, found.selected]


def covariance(tokens: Any) -> list[Any]:
    import logitless as ll

    found = ll.covariance(tokens.old_logp, tokens.advantages, tokens.mask)
    return [found.mean, found.correlation, found.above_one, *found.quantiles.values()]


def same(
    place: Place, run: Callable[..., list[Any]], n: int, op: str = "",
    where: Callable[..., Any] = as_it_is,
) -> Fields:  # fmt: skip
    """Of the CPU's bits: a selected token of -1 is none."""
    here, there = tokens_of(place, n)
    for mine, truth in zip(where(run, here), run(there), strict=True):
        values = torch.as_tensor(mine).cpu()
        values = values[values >= 0] if values.ndim else values
        expected = torch.as_tensor(truth, dtype=values.dtype)
        if not torch.equal(values, expected):
            raise AssertionError(f"not the CPU's: {values} in place of {expected}")
    note = predicted(place, op, n, 1, 1, F32) if op else {}
    return {**measured(place, lambda: where(run, here)), **note}


def measured(place: Place, run: Callable[[], Any]) -> Fields:
    """With launches, waits and copies."""
    counts = traffic(place, run)
    counts.pop("kernels")
    return {**bare(place, run), **counts}


def one_loss(
    place: Place, function: Callable[..., Fields], n: int, where: Callable[..., Any] = as_it_is
) -> Fields:
    here, there = tokens_of(place, n)

    def run(tokens: Any) -> tuple[Tensor, Tensor]:
        logp = tokens.logp.detach().requires_grad_()
        loss = function(logp, tokens)["loss"]
        return loss.detach(), torch.autograd.grad(loss, logp)[0]

    found, expected = where(run, here), run(there)
    for mine, truth in zip(found, expected, strict=True):
        close(mine.cpu(), truth.double(), 1e-5)
    return measured(place, lambda: where(run, here))
