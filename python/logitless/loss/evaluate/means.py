"""Means over the valid tokens of a batch, exact, whatever the magnitudes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from logitless.backends.token_kernels.arrays import square_root
from logitless.backends.token_kernels.protocol import Reduce, TokenKernels
from logitless.inputs.checks import shown
from logitless.inputs.tokens import Floats, Int64s, Tokens
from logitless.loss.evaluate.inputs import Means
from logitless.loss.evaluate.sequences import kernels_of, refuse, valid


def one_rank(values: Int64s) -> Int64s:
    """The `Reduce` of a batch that lives in one process."""
    return values


def reduction(group: Any, kernels: TokenKernels) -> Reduce:
    """Adds int64 arrays of these kernels over the ranks of a torch.distributed group; None: this
    process alone. Those of a device stay there: nothing waits, but for a group that is gloo's."""
    if group is None:
        return one_rank
    import torch
    import torch.distributed as dist

    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            "data_group must be a torch.distributed process group that this rank is in, "
            f"got {shown(group)}"
        )
    if not kernels.on_host:

        def reduce_there(values: Any) -> Any:
            dist.all_reduce(values, group=group)
            return values

        return reduce_there
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"

    def reduce(values: Int64s) -> Int64s:
        total = torch.from_numpy(values).to(device, copy=True)
        dist.all_reduce(total, group=group)
        return np.asarray(total.cpu().numpy())

    return reduce


def batch_means(tokens: Tokens, reduce: Reduce = one_rank) -> Means:
    """mean(A), mean(logp) and the count over valid tokens of all ranks."""
    return exact_means(tokens, tokens.advantages, tokens.logp, ("advantages", "logp"), reduce)


def exact_means(
    tokens: Tokens,
    first: Floats,  # [N]
    second: Floats,
    names: tuple[str, str],
    reduce: Reduce,
) -> Means:
    """The means of two arrays over the valid tokens of all ranks, and the count."""
    found = kernels_of(tokens).exact_means(tokens, first, second, reduce)
    if tokens.kernels.on_host and found.bad >= 0:
        raise ValueError(
            f"{names[0]} and {names[1]} must be finite where the mask is true, got "
            f"{first[found.bad]} and {second[found.bad]} at {tokens.place(found.bad)}"
        )
    return Means(found.first, found.second, found.number, exponents=found.exponents)


def moments(tokens: Tokens, x: Floats, name: str, reduce: Reduce) -> tuple[Any, Any]:
    """Mean and population standard deviation over the valid tokens of all ranks."""
    means = exact_means(tokens, x, x, (name, name), reduce)
    exponent, _ = means.exponents
    away = scaled_by(x, -exponent) - scaled_by(means.advantage, -exponent)
    squares = away * away
    variance = exact_means(tokens, squares, squares, (f"{name}^2", f"{name}^2"), reduce).advantage
    return means.advantage, scaled_by(square_root(variance), exponent)


def finite_values(tokens: Tokens, name: str, values: Floats | None) -> Floats:
    """float64, 0 outside the mask."""
    if values is None:
        raise ValueError(f"the spec's control needs {name}, got {name}=None")
    wide = valid(tokens, values)
    refuse(
        tokens,
        tokens.xp.isfinite(wide),
        lambda i: (
            f"{name} must be finite where the mask is true, got {wide[i]} at {tokens.place(i)}"
        ),
    )
    return wide


def ordinary(tokens: Tokens, means: Means) -> tuple[Tokens, Means]:
    """Advantages, log-probs and their means, divided by 2 to the `means.exponents`. That divides
    covariances by 2^sum(means.exponents) and keeps their order."""
    if not any(means.exponents):
        return tokens, means
    a, logp = means.exponents
    scaled = dataclasses.replace(
        tokens,
        advantages=scaled_by(valid(tokens, tokens.advantages), -a),
        logp=scaled_by(valid(tokens, tokens.logp), -logp),
    )
    return scaled, means._replace(
        advantage=float(scaled_by(means.advantage, -a)),
        logp=float(scaled_by(means.logp, -logp)),
        exponents=(0, 0),
    )


def scaled_by(x: Any, exponent: int) -> Any:
    """x 2^exponent, which may be infinite. Exponents of a device are 0: its kernels scale."""
    if exponent == 0:
        return x
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(x, exponent)
