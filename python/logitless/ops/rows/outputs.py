"""What the token ops return, and the torch side of their inputs and outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from logitless.inputs.options import HeadOptions

DIFFERENTIABLE = ("logp", "entropy", "lse")
STATISTICS = ("varentropy", "sum_p2", "entropy_change")


class TokenStats(NamedTuple):
    """Per-token statistics of softmax(z), shaped like targets; rows outside the mask are 0."""

    logp: Any  # log-probability of the target, nats, <= 0
    entropy: Any  # nats, in [0, log V]
    lse: Any  # logsumexp(z)
    extras: dict[str, Any]  # the requested extras by name, not differentiable


def empty_outputs(n: int, extras: bool, like: Tensor) -> dict[str, Tensor]:
    """Memory for the results of n rows: float32, or float64 like the input; extras if asked."""
    import torch

    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    out = {name: torch.empty(n, dtype=dtype, device=like.device) for name in DIFFERENTIABLE}
    rows = n if extras else 0
    out |= {name: torch.empty(rows, dtype=dtype, device=like.device) for name in STATISTICS}
    out["argmax"] = torch.empty(rows, dtype=torch.int64, device=like.device)
    return out


def requested(out: dict[str, Tensor], extras: bool) -> dict[str, Tensor]:
    return out if extras else {name: out[name] for name in DIFFERENTIABLE}


def to_stats(
    outputs: tuple[Tensor, ...], shape: tuple[int, ...], extras: tuple[str, ...]
) -> TokenStats:
    """(logp, entropy, lse, *STATISTICS, argmax) flat -> TokenStats in the caller's shape."""
    names = (*DIFFERENTIABLE, *STATISTICS, "argmax")
    named = dict(zip(names, outputs, strict=True))
    kept = {name: named[name].reshape(shape) for name in (*DIFFERENTIABLE, *extras)}
    return stats_of(kept, extras)


def stats_of(named: dict[str, Any], extras: tuple[str, ...]) -> TokenStats:
    return TokenStats(
        named["logp"], named["entropy"], named["lse"], {name: named[name] for name in extras}
    )


def flat_head(
    op: str,
    head: HeadOptions,
    shape: tuple[int, ...],
    mask: Tensor | None,
    wide: bool,
    *,
    look: bool = True,
) -> tuple[Tensor | None, Tensor | None, float, float, float]:
    """(bias, row_scale, scale, pre, softcap) as the core takes them; row_scale is [N] float64.

    Without `look` the values of a temperature tensor are not checked here, which would wait for a
    device: its kernels flag them.
    """
    import torch

    from logitless.inputs.scaling import check_scaling
    from logitless.ops.rows.row_scale import row_scale

    check_scaling(op, head, wide)
    per_row, scale = None, head.numerator
    if isinstance(head.temperature, torch.Tensor):
        per_row = row_scale(op, head, mask, wide, look=look)
    else:
        scale = scale / float(head.temperature)
    bias = head.bias
    if bias is not None:
        bias = bias.to(torch.float64 if wide else torch.float32).contiguous()
    return bias, per_row, scale, head.pre, head.cap


def as_float64(gradient: Tensor | None) -> Tensor | None:
    """An upstream gradient as the core takes it; expanded ones (from .sum()) become contiguous."""
    import torch

    return None if gradient is None else gradient.to(torch.float64).contiguous()
