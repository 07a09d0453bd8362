"""Batches and specs that the tests of the losses share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from logitless.loss.presets import presets
from logitless.loss.spec import (
    KL,
    Clip,
    ClipCov,
    EntropyBonus,
    KLCov,
    PolicyLossSpec,
    TopEntropy,
    Unclipped,
)

# The papers' fractions select one token of a small batch; these select several.
SPECS: dict[str, PolicyLossSpec] = {
    **presets,
    "dual": replace(presets["ppo"], surrogate=Clip(0.1, 0.3, dual=1.5)),
    "unclipped": PolicyLossSpec(surrogate=Unclipped()),
    "token_sum": replace(presets["ppo"], aggregation="token-sum"),
    "seq_sum": replace(presets["ppo"], aggregation="seq-mean-token-sum"),
    "norm": replace(presets["dr_grpo"], max_length=100),
    "entropy": replace(presets["grpo"], entropy=EntropyBonus(0.3)),
    "k1": replace(presets["ppo"], kl=KL("k1", 0.2)),
    "k2": replace(presets["grpo"], kl=KL("k2", 0.2)),
    "k3": replace(presets["ppo"], kl=KL("k3", 0.2), entropy=EntropyBonus(-0.1)),
    "many_clip_cov": replace(presets["clip_cov"], control=ClipCov(0.15, -0.5, 2.0)),
    "many_clip_cov_ppo": replace(presets["ppo"], control=ClipCov(0.15, -5.0, 5.0)),
    "many_kl_cov": replace(presets["kl_cov"], control=KLCov(0.3, 0.7)),
    "kl_cov_clip": replace(presets["grpo"], control=KLCov(0.3, 0.7)),
    "many_top_entropy": replace(
        presets["top_entropy"], control=TopEntropy(0.4), entropy=EntropyBonus(0.2)
    ),
}
SELECTING = {name: spec for name, spec in SPECS.items() if spec.selects}
MAX_LENGTH = 64


@dataclass(frozen=True)
class Batch:
    """A batch padded to [B, T]; what lies outside the mask is NaN."""

    logp: np.ndarray
    old_logp: np.ndarray
    ref_logp: np.ndarray
    entropy: np.ndarray
    advantages: np.ndarray
    mask: np.ndarray
    token_ids: np.ndarray

    @property
    def inputs(self) -> tuple[np.ndarray, ...]:
        return self.logp, self.old_logp, self.advantages, self.mask

    @property
    def optional(self) -> dict[str, np.ndarray]:
        return {"entropy": self.entropy, "ref_logp": self.ref_logp, "token_ids": self.token_ids}

    def rows(self, which: Any) -> Batch:
        """Some of the sequences, or all in another order."""
        return Batch(**{name: x[which] for name, x in vars(self).items()})

    def packed(self) -> tuple[Batch, np.ndarray]:
        """(flat tokens without the padding at the end of each sequence, cu_seqlens)."""
        lengths = [int(np.flatnonzero(row).max(initial=-1)) + 1 for row in self.mask]
        keep = np.arange(self.mask.shape[1]) < np.array(lengths)[:, None]
        cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return Batch(**{name: x[keep] for name, x in vars(self).items()}), cu_seqlens


def make_batch(
    seed: int = 0, shape: tuple[int, int] = (6, 20), dtype: Any = np.float64, spread: float = 0.4
) -> Batch:
    """Sequences of unequal lengths with holes (tool output) in the mask, one of them empty."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, shape[1] + 1, size=shape[0])
    lengths[shape[0] // 2] = 0
    mask = (np.arange(shape[1]) < lengths[:, None]) & (rng.random(shape) < 0.9)
    old = -rng.exponential(size=shape)
    values = {
        "old_logp": old,
        "logp": old + spread * rng.normal(size=shape),
        "ref_logp": old + spread * rng.normal(size=shape),
        "entropy": rng.exponential(size=shape),
        "advantages": np.broadcast_to(rng.normal(size=(shape[0], 1)), shape) * 2.0,
    }
    poisoned = {name: np.where(mask, x, np.nan).astype(dtype) for name, x in values.items()}
    ids = rng.permutation(1000)[: shape[0], None] * MAX_LENGTH + np.arange(shape[1])
    return Batch(**poisoned, mask=mask, token_ids=ids)
