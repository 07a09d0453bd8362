"""What the token ops return: flat from an op, and in the caller's shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from logitless.inputs.arrays import zeros_like
from logitless.inputs.options import DROPPED, STATISTICS

if TYPE_CHECKING:
    from torch import Tensor

DIFFERENTIABLE = ("logp", "entropy", "lse")


class TokenStats(NamedTuple):
    """Per-token statistics of softmax(z), shaped like targets; rows outside the mask are 0."""

    logp: Any  # log-probability of the target, nats, <= 0
    entropy: Any  # nats, in [0, log V]
    lse: Any  # logsumexp(z)
    extras: dict[str, Any]  # the requested extras by name, not differentiable
    selected: Any = None  # [*targets.shape, K] log-probs of `selected_ids`; None without any


def with_nothing_dropped(stats: TokenStats, extras: tuple[str, ...]) -> TokenStats:
    """An exact call drops nothing: the extras that say so, in the order they were asked for."""
    zeros = {name: zeros_like(stats.logp) for name in extras if name in DROPPED}
    return stats._replace(extras={name: (zeros | stats.extras)[name] for name in extras})


def split_extras(extras: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those of rows, and those of what is dropped."""
    return (
        tuple([name for name in extras if name not in DROPPED]),
        tuple([name for name in extras if name in DROPPED]),
    )


def empty_outputs(n: int, extras: bool, like: Tensor) -> dict[str, Tensor]:
    """Memory for the results of n rows: float32, or float64 like the input; extras if asked."""
    import torch

    out = differentiable_outputs(n, like)
    dtype, rows = out["logp"].dtype, n if extras else 0
    out["statistics"] = torch.empty(len(STATISTICS), rows, dtype=dtype, device=like.device)
    out["argmax"] = torch.empty(rows, dtype=torch.int64, device=like.device)
    return out


def differentiable_outputs(n: int, like: Tensor) -> dict[str, Tensor]:
    """The same of the results with gradients alone."""
    import torch

    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return {name: torch.empty(n, dtype=dtype, device=like.device) for name in DIFFERENTIABLE}


def requested(out: dict[str, Tensor], extras: bool) -> dict[str, Tensor]:
    """By the names that kernels and callers have for them."""
    values = {name: out[name] for name in DIFFERENTIABLE}
    if not extras:
        return values
    return (
        values
        | dict(zip(STATISTICS, out["statistics"].unbind(), strict=True))
        | {"argmax": out["argmax"]}
    )


def scattered(out: dict[str, Tensor], index: Tensor | None, n: int) -> dict[str, Tensor]:
    """The results of the rows at `index` among those of n rows, the others 0 (argmax: -1)."""
    if index is None:
        return out
    full = {}
    for name, values in out.items():
        fill = -1 if name == "argmax" else 0
        # extras that are not asked for are empty
        if values.shape[-1] == len(index):
            held = values.new_full((*values.shape[:-1], n), fill)
            values = held.index_copy_(-1, index, values)
        full[name] = values
    return full


def to_stats(
    flat: dict[str, Tensor], shape: tuple[int, ...], extras: tuple[str, ...]
) -> TokenStats:
    """TokenStats in the caller's shape."""
    flat = requested(flat, bool(extras)) if "statistics" in flat else flat
    kept = {name: flat[name].reshape(shape) for name in (*DIFFERENTIABLE, *extras)}
    return stats_of(kept, extras)


def stats_of(named: dict[str, Any], extras: tuple[str, ...]) -> TokenStats:
    return TokenStats(
        named["logp"], named["entropy"], named["lse"], {name: named[name] for name in extras}
    )
