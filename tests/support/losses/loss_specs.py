"""Batches and specs that the tests of the losses share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from logitless import reference
from logitless.loss.spec import (
    KL,
    Aspo,
    Bapo,
    BoundedClip,
    Cispo,
    Clip,
    ClipB,
    ClipCov,
    ClipV,
    Correction,
    Dcpo,
    Entropic,
    EntropyAdvantage,
    EntropyBonus,
    EntropyFloor,
    EntropyRatioClip,
    EntropyWeights,
    KLCov,
    M2po,
    NoPolicy,
    OffPolicyMask,
    PolicyLossSpec,
    Reinforce,
    Reject,
    RepoD,
    RepoR,
    Sapo,
    SignWeights,
    Siren,
    Steer,
    TopEntropy,
    TrustMask,
    Unclipped,
    Vespo,
)
from logitless.loss.spec.corrections import corrections
from logitless.loss.spec.presets import presets
from logitless.loss.spec.surrogates import Gmpo
from logitless.reference.ratio import log_ratios
from logitless.reference.selection import sequence_of_token

_ESTIMATORS = ("k1", "k2", "k3", "abs", "low_var")
_SEQUENCE = "seq-mean-token-mean"

# The papers' fractions select one token of a small batch; these select several.
SPECS: dict[str, PolicyLossSpec] = {
    **presets,
    "dual": replace(presets["ppo"], surrogate=Clip(0.1, 0.3, dual=1.5)),
    "bounded": PolicyLossSpec(surrogate=BoundedClip(0.1, 0.15, 0.5, 0.7, dual=1.5)),
    "bounded_sequence": PolicyLossSpec("sequence", BoundedClip(0.03, 0.05), aggregation=_SEQUENCE),
    "dcpo_tight": PolicyLossSpec(surrogate=Dcpo(0.02, 0.03, 1.3, dual=1.4)),
    "dcpo_one_sided": PolicyLossSpec(surrogate=Dcpo(0.0, 0.05, dual=None)),
    "aspo_tight": PolicyLossSpec(surrogate=Aspo(0.1, 0.15, 1.2)),
    "m2po_tight": PolicyLossSpec(surrogate=M2po(0.04, 0.05, 0.05)),
    "m2po_dear": PolicyLossSpec(
        surrogate=M2po(1e-3, 0.0, 0.0), control=SignWeights(0.3, 2.0), aggregation=_SEQUENCE
    ),
    "m2po_free": PolicyLossSpec(surrogate=M2po(9.0), kl=KL("k3", 0.1)),
    "bapo_low": PolicyLossSpec(surrogate=Bapo(0.5, 0.9, 0.1, 1.1, 1.5, 0.2, 0.8)),
    "bapo_far": PolicyLossSpec(
        surrogate=Bapo(target=50.0, dual=None), entropy=EntropyBonus(0.1), aggregation=_SEQUENCE
    ),
    "bapo_inference": PolicyLossSpec("inference", Bapo(target=1.5, dual=1.3)),
    "entropy_advantage_dapo": replace(presets["dapo"], control=EntropyAdvantage(0.3, 2.0)),
    "entropy_advantage_gmpo": replace(presets["gmpo"], control=EntropyAdvantage(0.3, 1.5)),
    "repo_r_strong": replace(presets["ppo_dual_clip"], control=RepoR(0.9)),
    "repo_r_negative": replace(presets["gspo"], control=RepoR(-0.9), kl=KL("k3", 0.1)),
    "repo_d_strong": replace(presets["dapo"], control=RepoD(1.5), entropy=EntropyBonus(0.1)),
    "repo_d_parts": replace(
        presets["reinforce"], control=RepoD(-0.5), kl=KL("k1", 0.2, aggregation="token-sum")
    ),
    "erc_wide": replace(presets["gspo"], control=EntropyRatioClip(0.7, 1.2), kl=KL("k3", 0.1)),
    "steer_strong": replace(presets["grpo"], control=Steer(0.2, 1.5), entropy=EntropyBonus(0.1)),
    "steer_gspo": replace(presets["gspo"], control=Steer(0.3, 2.0, linear=True)),
    "steer_floor": PolicyLossSpec(
        "none", Reinforce(), Steer(0.1, floor=50.0), correction=corrections["tis"]
    ),
    "entropic_falls": replace(
        presets["entropic"], control=Entropic(0.7, 0.4), entropy=EntropyBonus(0.1)
    ),
    "entropic_rises": PolicyLossSpec(
        "sequence", Clip(0.1, 0.1), Entropic(-0.9, 0.3), KL("k3", 0.1),
        correction=corrections["tis"], aggregation="token-mean",
    ),
    "entropic_reinforce": replace(presets["reinforce"], control=Entropic(-0.5, 0.2)),
    "entropic_inference": PolicyLossSpec("inference", Unclipped(), Entropic(0.3, 0.5)),
    "entropic_m2po": replace(presets["m2po"], control=Entropic(0.4, 0.4)),
    "siren_low": replace(presets["siren"], entropy=Siren(0.4, 3.0)),
    "siren_high": replace(
        presets["grpo"], entropy=Siren(0.3, 0.5, 0.6), kl=KL("k3", 0.1, aggregation="token-sum")
    ),
    "siren_token_mean": replace(presets["top_entropy"], entropy=Siren(0.7, 1.0, 0.0)),
    "unclipped": PolicyLossSpec(surrogate=Unclipped()),
    "token_sum": replace(presets["ppo"], aggregation="token-sum"),
    "seq_sum": replace(presets["ppo"], aggregation="seq-mean-token-sum"),
    "own_entropy": replace(
        presets["grpo"], kl=KL("k3", 0.2), entropy=EntropyBonus(0.3, "token-mean")
    ),
    "own_kl": replace(
        presets["kl_cov"], control=KLCov(0.3, 0.7), entropy=EntropyBonus(0.1),
        kl=KL("k2", 0.2, "ratio", aggregation="seq-mean-token-mean"),
    ),
    "own_terms": replace(
        presets["gspo"], kl=KL("k1", 0.2, "score", aggregation="token-sum"),
        entropy=EntropyFloor(0.3, 0.8, "seq-mean-token-sum"),
    ),
    "own_selected": replace(
        presets["top_entropy"], control=TopEntropy(0.4, normaliser="selected"),
        entropy=EntropyBonus(0.2, "token-mean"),
    ),
    "own_only": PolicyLossSpec(
        "none", NoPolicy(), entropy=EntropyBonus(0.2, "seq-mean-token-mean")
    ),
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
    "top_selected": replace(
        presets["top_entropy"], control=TopEntropy(0.4, normaliser="selected")
    ),
    "many_kl_cov_ref": replace(
        presets["kl_cov"], control=KLCov(0.3, 0.7, estimator="k3", against="ref")
    ),
    "many_clip_b": replace(presets["clip_b"], control=ClipB(0.3)),
    "many_clip_v": replace(presets["clip_v"], control=ClipV(0.1, 0.5)),
    "clip_cov_sequence": replace(
        presets["ppo"], ratio="sequence_token", control=ClipCov(0.15, -5.0, 5.0)
    ),
    "signs": replace(presets["ppo"], control=SignWeights(0.3, 2.0)),
    "entropy_weights": replace(presets["ppo"], control=EntropyWeights(0.9)),
    "opsm_rollout": replace(presets["opsm"], control=OffPolicyMask(0.02, "rollout")),
    "floor": replace(presets["grpo"], entropy=EntropyFloor(0.3, 0.8)),
    "wide_gspo": replace(presets["gspo"], surrogate=Clip(0.05, 0.08), aggregation="token-mean"),
    "wide_gspo_token": replace(presets["gspo_token"], surrogate=Clip(0.05, 0.08)),
    "wide_luspo": replace(presets["luspo"], surrogate=Clip(0.05, 0.08)),
    "narrow_gmpo": replace(
        presets["gmpo"], surrogate=Gmpo(low=0.2, high=0.1)
    ),
    "gmpo_tis": replace(presets["gmpo"], correction=corrections["tis"]),
    "rloo_clip": PolicyLossSpec("sequence_sum", Clip(0.2, 0.2), aggregation=_SEQUENCE),
    "sapo_sequence": PolicyLossSpec("sequence", Sapo(), aggregation=_SEQUENCE),
    "cispo_sequence": PolicyLossSpec("sequence", Cispo(0.1, 0.1)),
    "vespo_token_sum": replace(
        presets["vespo"], surrogate=Vespo(1.0, 0.5, 0.5, 1.0), aggregation="token-sum"
    ),
    "tv_narrow": PolicyLossSpec(surrogate=TrustMask("tv", 0.05, 0.03, cap=1.1)),
    "kl_narrow": PolicyLossSpec(surrogate=TrustMask("kl", 0.01, 0.02)),
    "kl_two_sided": PolicyLossSpec(surrogate=TrustMask("kl", 0.01, 0.02, two_sided=True)),
    **{
        f"{name}{plus}": replace(presets["reinforce_pp"], kl=KL(name + plus, 0.2))
        for name in _ESTIMATORS
        for plus in ("", "+")
        if name + plus not in ("k1", "k2", "k3")
    },
    "kl_ratio": replace(presets["ppo"], kl=KL("k3", 0.2, "ratio")),
    "kl_score": replace(presets["reinforce"], kl=KL("k1", 0.2, "score", "rollout")),
    "kl_old": replace(presets["ppo"], kl=KL("k2", 0.2, against="old")),
    **{
        f"correction_{name}": replace(presets["dapo"], correction=value)
        for name, value in corrections.items()
    },
    "correction_normalized": replace(
        presets["kl_cov"],
        control=KLCov(0.3, 0.7),
        correction=Correction("geometric", 0.9, 1.1, normalize=True),
    ),
    **{
        f"reject_{measure}": replace(
            presets["dapo"], correction=Correction("token", reject=(Reject(measure, high),))
        )
        for measure, high in {
            "token_k1": 1.2, "token_k2": 0.05, "token_k3": 0.05, "seq_sum_k2": 0.3,
            "seq_sum_k3": 0.3, "seq_mean_k2": 0.05, "seq_mean_k3": 0.05, "seq_max_k2": 0.3,
            "seq_max_k3": 0.3,
        }.items()
    },
}  # fmt: skip
SELECTING = {name: spec for name, spec in SPECS.items() if spec.selects}
MAX_LENGTH = 64


@dataclass(frozen=True)
class Batch:
    """A batch padded to [B, T]; what lies outside the mask is NaN."""

    logp: np.ndarray
    old_logp: np.ndarray
    ref_logp: np.ndarray
    rollout_logp: np.ndarray
    entropy: np.ndarray
    entropy_change: np.ndarray
    old_entropy: np.ndarray
    advantages: np.ndarray
    mask: np.ndarray
    token_ids: np.ndarray

    @property
    def inputs(self) -> tuple[np.ndarray, ...]:
        return self.logp, self.old_logp, self.advantages, self.mask

    @property
    def optional(self) -> dict[str, np.ndarray]:
        names = ("entropy", "ref_logp", "rollout_logp", "old_entropy", "token_ids")
        return {name: getattr(self, name) for name in names}

    def rows(self, which: Any) -> Batch:
        """Some of the sequences, or all in another order."""
        return Batch(**{name: x[which] for name, x in vars(self).items()})

    def packed(self) -> tuple[Batch, np.ndarray]:
        """(flat tokens without the padding at the end of each sequence, cu_seqlens)."""
        lengths = [int(np.flatnonzero(row).max(initial=-1)) + 1 for row in self.mask]
        keep = np.arange(self.mask.shape[1]) < np.array(lengths)[:, None]
        cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return Batch(**{name: x[keep] for name, x in vars(self).items()}), cu_seqlens


def chosen(
    batch: Batch, spec: PolicyLossSpec, *, old: bool = True, seed: int = 0, step: int = 0
) -> list[int]:
    """The oracle's selection; without `old` no token counts as clipped."""
    rows = sequence_of_token(batch.mask.shape)
    u = log_ratios((batch.logp - batch.old_logp).astype(np.float64).ravel(),
                   batch.mask.ravel(), spec.ratio, rows)  # fmt: skip
    return reference.select(
        batch.logp, batch.advantages, batch.mask, spec, old_logp=batch.old_logp if old else None,
        entropy=batch.entropy, entropy_change=batch.entropy_change, token_ids=batch.token_ids,
        seed=seed, step=step,
        log_ratio=u.reshape(batch.mask.shape) if spec.sequence_ratio else None,
    )  # fmt: skip


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
    ids = rng.permutation(1000)[: shape[0], None] * MAX_LENGTH + np.arange(shape[1])
    values["rollout_logp"] = old + 0.5 * spread * rng.normal(size=shape)
    values["entropy_change"] = rng.normal(size=shape)
    values["old_entropy"] = values["entropy"] * np.exp(0.15 * rng.normal(size=shape))
    values["logp"] = np.minimum(values["logp"], -1e-3)
    poisoned = {name: np.where(mask, x, np.nan).astype(dtype) for name, x in values.items()}
    return Batch(**poisoned, mask=mask, token_ids=ids)
