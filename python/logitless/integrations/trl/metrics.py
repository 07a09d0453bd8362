"""The metrics of TRL's GRPO trainer, under its names, for any spec."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

import logitless as ll
from logitless.integrations.trl.losses import ArgsLoss


class MicroBatch(NamedTuple):
    """What was scored, [B, T] each; advantages may be [B, 1]. `old` is `logp` on policy."""

    mask: Tensor
    advantages: Tensor
    logp: Tensor
    entropy: Tensor
    old: Tensor
    ref: Tensor | None
    rollout: Tensor | None


def micro_batch(arrays: dict[str, Any], logp: Tensor, entropy: Tensor) -> MicroBatch:
    advantages, old = arrays["advantages"], arrays["old_logp"]
    return MicroBatch(
        arrays["mask"],
        advantages[:, None] if advantages.dim() == 1 else advantages,
        logp,
        entropy,
        logp if old is None else old,
        arrays["ref_logp"],
        arrays["rollout_logp"],
    )


def log_metrics(trainer: Any, mode: str, spec: ll.PolicyLossSpec, tokens: MicroBatch) -> None:
    """Appends to `trainer._metrics`, whose entries TRL averages when it logs."""
    metrics, accelerator = trainer._metrics[mode], trainer.accelerator
    ratio = ratio_of(spec, tokens)
    means = {"entropy": tokens.entropy}
    if tokens.ref is not None and spec.kl is not None and spec.kl.against == "ref":
        kl = k3(tokens.ref - tokens.logp)
        means["kl"] = kl * ratio if spec.kl.weight == "ratio" and ratio is not None else kl
    clipped = {} if ratio is None else clips(spec, ratio, tokens.advantages)
    for name, value in (means | clipped).items():
        metrics[name].append(masked_mean(accelerator, value, tokens.mask))
    for end, extreme in (("low", "min"), ("high", "max")):
        name = f"clip_ratio/{end}_mean"
        if name in clipped:
            gathered = accelerator.gather(sequence_means(clipped[name], tokens.mask))
            known = gathered[~gathered.isnan()]
            most = getattr(known, extreme)().item() if len(known) else math.nan
            metrics[f"clip_ratio/{end}_{extreme}"].append(most)


def log_shares(trainer: Any, mode: str, shares: dict[str, Tensor], micro_batches: int) -> None:
    """Metrics that add up over the micro-batches of all ranks, where TRL takes means of entries."""
    if not shares:
        return
    total = trainer.accelerator.reduce(torch.stack(list(shares.values())), reduction="sum")
    for name, value in zip(shares, (total * micro_batches).tolist(), strict=True):
        trainer._metrics[mode][name].append(value)


def log_bonus(
    trainer: Any, mode: str, loss: ArgsLoss, shares: dict[str, Tensor], scale: float
) -> None:
    """What TRL logs beside an entropy bonus: the loss without it, and its coefficient."""
    parts = sum(shares[x] for x in ("actor/pg_loss", "actor/kl_loss") if x in shares)
    gathered = trainer.accelerator.gather(parts * scale)
    trainer._metrics[mode]["policy_loss"].append(gathered.nanmean().item())
    if mode == "train" and trainer.accelerator.sync_gradients:
        trainer._metrics[mode]["entropy_coef"].append(loss.entropy_coefficient)


def ratio_of(spec: ll.PolicyLossSpec, tokens: MicroBatch) -> Tensor | None:
    """The ratio that the surrogate sees, [B, T], or [B, 1] of sequences."""
    if spec.ratio == "none":
        return None
    start: Any = tokens.rollout if spec.ratio == "inference" else tokens.old
    log_ratio = torch.where(tokens.mask, tokens.logp - start, 0.0)
    if spec.sequence_ratio:
        log_ratio = log_ratio.sum(dim=1, keepdim=True)
        if spec.ratio != "sequence_sum":
            log_ratio = log_ratio / tokens.mask.sum(dim=1, keepdim=True).clamp(min=1)
    return log_ratio.exp()


def k3(apart: Tensor) -> Tensor:
    return apart.exp() - 1 - apart


def clips(spec: ll.PolicyLossSpec, ratio: Tensor, advantages: Tensor) -> dict[str, Tensor]:
    """1 where a bound of the surrogate acts."""
    surrogate = spec.surrogate
    if isinstance(surrogate, ll.Vespo):
        return {"vespo/phi_seq_mean": vespo_weight(surrogate, ratio, advantages)}
    low, high = surrogate.ratio_range
    above = ((ratio > high) & (advantages > 0)).float()
    if isinstance(surrogate, ll.Cispo):
        return {"cispo_clip_ratio": above}
    if low == -math.inf and high == math.inf:
        return {}
    below = ((ratio < low) & (advantages < 0)).float()
    names = ("low", "high", "region")
    return {
        f"clip_ratio/{name}_mean": value
        for name, value in zip(names, (below, above, below + above), strict=True)
    }


def vespo_weight(surrogate: ll.Vespo, ratio: Tensor, advantages: Tensor) -> Tensor:
    right = advantages >= 0
    k = torch.where(right, surrogate.k_positive, surrogate.k_negative)
    rate = torch.where(right, surrogate.lambda_positive, surrogate.lambda_negative)
    return ratio**k * (rate * (1 - ratio)).exp()


def masked_mean(accelerator: Any, value: Tensor, mask: Tensor) -> float:
    """Over the valid tokens of all ranks, or over rows where the value is of rows."""
    if value.shape[1] == 1:
        sums = torch.stack((value.sum(), value.new_tensor(float(len(value)))))
    else:
        sums = torch.stack((torch.where(mask, value, 0.0).sum(), mask.sum().to(value.dtype)))
    total, count = accelerator.reduce(sums, reduction="sum").tolist()
    return float(total / max(count, 1.0))


def sequence_means(value: Tensor, mask: Tensor) -> Tensor:  # [B], NaN of a sequence without tokens
    if value.shape[1] == 1:
        return value[:, 0]
    return torch.where(mask, value, 0.0).sum(dim=1) / mask.sum(dim=1)
