"""backend="torch": the same numbers in eager torch with full logits, differentiable by autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Tanh(torch.autograd.Function):
    """torch.tanh, but for its slope: 1 - tanh^2 has no digits left where tanh is near 1."""

    @staticmethod
    def forward(u: Tensor) -> Tensor:
        return torch.tanh(u)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Tensor:
        u, t = ctx.saved_tensors
        slope: Tensor = (-2 * u.abs()).exp() * (1 + t.abs()) ** 2
        return g[0] * slope


def softcapped(x: Tensor, softcap: float, pre: float = 1.0) -> Tensor:
    """softcap tanh(pre x / softcap)."""
    capped: Tensor = softcap * _Tanh.apply(x * (pre / softcap))  # type: ignore[no-untyped-call]
    return capped


def eager_stats(
    logits: Tensor,  # [N, V]
    targets: Tensor,  # [N] int64
    mask: Tensor | None,
    bias: Tensor | None,
    row_scale: Tensor | None,
    scale: float,
    pre: float,
    softcap: float,
    kept: Tensor | None = None,  # [N, V] bool: the others are impossible, whatever their logits
) -> dict[str, Tensor]:
    """The results of the rows and every extra, each [N]."""
    n = len(logits)
    y = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    rows = torch.arange(n, device=y.device) if mask is None else mask.nonzero().squeeze(1)
    y, targets = y[rows], targets[rows]
    if bias is not None:
        y = y + bias
    if softcap:
        y = softcapped(y, softcap, pre)
    if kept is not None:
        y = y.masked_fill(~kept[rows], -float("inf"))
    scales = y.new_full((), scale) if row_scale is None else row_scale[rows].to(y.dtype)
    _check_rows(y, scales, targets, rows, "" if bias is None else " plus bias")
    # The maximum is taken off before anything is scaled: what is large loses no digits.
    m = y.detach().amax(-1)
    z = (y - m[:, None]) * scales[..., None]
    log_s0 = z.logsumexp(-1)
    log_p = z - log_s0[:, None]
    p = log_p.exp()
    # 0 * -inf is 0 here: an impossible token adds nothing, in value or gradient.
    finite = log_p.masked_fill(p == 0, 0.0)
    logp = log_p.gather(1, targets[:, None]).squeeze(1)
    entropy = -(p * finite).sum(-1)
    with torch.no_grad():
        shifted = finite + entropy[:, None]
        second = (p * p * shifted).sum(-1)
        own = logp.exp() * torch.where(logp.isinf(), 0.0, logp + entropy)
        values = {
            "varentropy": (p * shifted * shifted).sum(-1),
            "sum_p2": (p * p).sum(-1),
            "log_sum_p2": (2 * log_p).logsumexp(-1),
            "mean_logit": m * scales + log_s0 - entropy,
            "entropy_change": second - own,
        }
    out = {"logp": logp, "entropy": entropy, "lse": m * scales + log_s0, **values}
    out = {name: value.new_zeros(n).index_copy(0, rows, value) for name, value in out.items()}
    out["argmax"] = torch.full((n,), -1, device=y.device).index_copy(0, rows, z.argmax(-1))
    return out


def likeliest(
    logits: Tensor,  # [N, V]
    bias: Tensor | None,
    row_scale: Tensor | None,
    scale: float,
    pre: float,
    softcap: float,
    *,
    top_p: float,
) -> Tensor:  # [N, V] bool
    """The fewest tokens, largest z first and of equals the smaller, whose mass reaches top_p."""
    y = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    y = y if bias is None else y + bias
    y = softcapped(y, softcap, pre) if softcap else y
    z = y * (scale if row_scale is None else row_scale[:, None].to(y.dtype))
    ordered, index = z.sort(dim=-1, descending=True, stable=True)
    p = ordered.softmax(-1)
    kept = p.cumsum(-1) - p < top_p
    # the first always: what was summed may be NaN, which the row's check will find
    kept[:, 0] = True
    return torch.zeros_like(kept).scatter(-1, index, kept)


def _check_rows(y: Tensor, scales: Tensor, targets: Tensor, rows: Tensor, with_bias: str) -> None:
    vocab, inf = y.shape[1], float("inf")
    overflow = "its logits times logit_scale / temperature overflow"
    raise_first(
        rows,
        (f"its logits{with_bias} hold a +inf", (y == inf).any(-1)),
        (f"its logits{with_bias} hold a NaN", y.isnan().any(-1)),
        ("it has no finite logit", (y == -inf).all(-1)),
        (f"its target is outside [0, {vocab})", (targets < 0) | (targets >= vocab)),
        (f"{overflow} {str(y.dtype).removeprefix('torch.')}", (y.amax(-1) * scales).isinf()),
    )


def raise_first(rows: Tensor, *problems: tuple[str, Tensor]) -> None:
    """The first problem that a row has, [n] bool each."""
    for text, bad in problems:
        if bad.any():
            raise ValueError(f"row {int(rows[int(bad.nonzero()[0])])}: {text}")
