"""The axes of a policy loss, presets and controllers: pure data."""

from __future__ import annotations

from logitless.loss.spec.policy_spec import (
    KL,
    Aggregation,
    AnyControl,
    Cispo,
    Clip,
    ClipB,
    ClipCov,
    ClipV,
    Control,
    Correction,
    CustomControl,
    CustomSurrogate,
    Dro,
    EntropyBonus,
    EntropyFloor,
    EntropyWeights,
    Gmpo,
    KLCov,
    KLEstimator,
    NoPolicy,
    OffPolicyMask,
    PolicyLossSpec,
    Ratio,
    Reinforce,
    Reject,
    Sapo,
    Scope,
    SignWeights,
    Surrogate,
    SurrogateInputs,
    TopEntropy,
    TrustMask,
    Unclipped,
    Vespo,
)

__all__ = [
    "KL", "Aggregation", "AnyControl", "Cispo", "Clip", "ClipB", "ClipCov", "ClipV", "Control",
    "Correction", "CustomControl", "CustomSurrogate", "Dro", "EntropyBonus", "EntropyFloor",
    "EntropyWeights", "Gmpo", "KLCov", "KLEstimator", "NoPolicy", "OffPolicyMask",
    "PolicyLossSpec", "Ratio", "Reinforce", "Reject", "Sapo", "Scope", "SignWeights", "Surrogate",
    "SurrogateInputs", "TopEntropy", "TrustMask", "Unclipped", "Vespo",
]  # fmt: skip
