"""backend="torch": divergences of full logits in eager torch, differentiable by autograd."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from logitless.backends.row_kernels.eager import raise_first, softcapped
from logitless.backends.row_kernels.noise import RowNoise


def eager_divergence(
    logits: Tensor,  # [N, V]
    teacher_logits: Tensor,  # [N, V]
    mask: Tensor | None,  # [N]
    student: tuple[Tensor | None, Tensor | None, float, float, float],
    teacher: tuple[Tensor | None, Tensor | None, float, float, float],
    kind: str,
    beta: float,
    kept: Tensor | None = None,  # [N, V] bool: the tokens that both are renormalised over
    noise: RowNoise | None = None,  # of the teacher's rows
) -> dict[str, Tensor]:
    """Each [N]. `student`, `teacher`: bias, scales of rows, scale, pre and softcap."""
    n = len(logits)
    rows = torch.arange(n, device=logits.device) if mask is None else mask.nonzero().squeeze(1)
    kept = None if kept is None else kept[rows]
    log_p = _log_probs(logits[rows], kept, rows, "its logits", "it", *student)
    noise = None if noise is None else noise.at(rows)
    with torch.no_grad():
        log_q = _log_probs(
            teacher_logits[rows], kept, rows, "its teacher's logits", "its teacher", *teacher,
            noise=noise,
        )  # fmt: skip
    values = {
        "entropy": _expected(log_p, -log_p),
        "teacher_entropy": _expected(log_q, -log_q),
        "reverse_kl": _expected(log_p, log_p - log_q).clamp(min=0),
        "forward_kl": _expected(log_q, log_q - log_p).clamp(min=0),
    }
    if kind == "jsd":
        # the sum of two that are -inf has no gradient, and nobody asks for its value
        nowhere = (log_p == -float("inf")) & (log_q == -float("inf"))
        log_m = torch.logaddexp(
            (log_p + math.log1p(-beta)).masked_fill(nowhere, 0.0), log_q + math.log(beta)
        )
        own, other = _expected(log_p, log_p - log_m), _expected(log_q, log_q - log_m)
        values["jsd"] = ((1 - beta) * own + beta * other).clamp(min=0)
    values["divergence"] = values.pop("jsd") if kind == "jsd" else values[kind]
    for name in ("reverse_kl", "forward_kl", "teacher_entropy"):
        values[name] = values[name].detach()
    return {name: value.new_zeros(n).index_copy(0, rows, value) for name, value in values.items()}


def _log_probs(
    raw: Tensor,
    kept: Tensor | None,
    rows: Tensor,
    logits: str,
    who: str,
    bias: Tensor | None,
    row_scale: Tensor | None,
    scale: float,
    pre: float,
    softcap: float,
    noise: RowNoise | None = None,
) -> Tensor:
    y = raw.to(torch.float64 if raw.dtype == torch.float64 else torch.float32)
    if bias is not None:
        y = y + bias
    if softcap:
        y = softcapped(y, softcap, pre)
    if kept is not None:
        y = y.masked_fill(~kept, -float("inf"))
    plus = "" if bias is None else " plus bias"
    raise_first(
        rows,
        (f"{logits}{plus} hold a +inf", (y == float("inf")).any(-1)),
        (f"{logits}{plus} hold a NaN", y.isnan().any(-1)),
        (f"{who} has no finite logit", (y == -float("inf")).all(-1)),
    )
    scales = y.new_full((), scale) if row_scale is None else row_scale[rows].to(y.dtype)
    # The maximum is taken off before anything is scaled: what is large loses no digits.
    z = (y - y.detach().amax(-1, keepdim=True)) * scales[..., None]
    if noise is not None:
        z = z + noise.of_columns(z.shape[-1]).to(z.dtype)
    return z - z.logsumexp(-1, keepdim=True)


def _expected(log_p: Tensor, values: Tensor) -> Tensor:
    """sum p * values: a token without mass adds nothing, in value or gradient."""
    p = log_p.exp()
    return (p * values.masked_fill(p == 0, 0.0)).sum(-1)
