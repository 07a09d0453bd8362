"""The axes of a policy loss, presets and controllers: pure data."""

from __future__ import annotations

from logitless.loss.spec.advantage_controls import (
    AdvantageControl,
    AnyControl,
    EntropyAdvantage,
    RepoD,
    RepoR,
)
from logitless.loss.spec.batch_clips import Bapo, BatchClip, M2po
from logitless.loss.spec.controls import (
    ClipB,
    ClipCov,
    ClipV,
    Control,
    CustomControl,
    Entropic,
    EntropyRatioClip,
    EntropyWeights,
    KLCov,
    OffPolicyMask,
    SignWeights,
    Steer,
    TopEntropy,
)
from logitless.loss.spec.corrections import Correction, Reject
from logitless.loss.spec.policy_spec import PolicyLossSpec, Ratio
from logitless.loss.spec.surrogates import (
    Aspo,
    BoundedClip,
    Cispo,
    Clip,
    CustomSurrogate,
    Dcpo,
    Dro,
    Gmpo,
    NoPolicy,
    Reinforce,
    Sapo,
    Surrogate,
    SurrogateInputs,
    TrustMask,
    Unclipped,
    Vespo,
)
from logitless.loss.spec.terms import (
    KL,
    Aggregation,
    AnyEntropy,
    EntropyBonus,
    EntropyFloor,
    KLEstimator,
    Scope,
    Siren,
)

__all__ = [
    "KL", "AdvantageControl", "Aggregation", "AnyControl", "AnyEntropy", "Aspo", "Bapo",
    "BatchClip", "BoundedClip", "Cispo", "Clip", "ClipB", "ClipCov", "ClipV", "Control",
    "Correction", "CustomControl", "CustomSurrogate", "Dcpo", "Dro", "Entropic",
    "EntropyAdvantage", "EntropyBonus", "EntropyFloor", "EntropyRatioClip", "EntropyWeights",
    "Gmpo", "KLCov", "KLEstimator", "M2po", "NoPolicy", "OffPolicyMask", "PolicyLossSpec", "Ratio",
    "Reinforce", "Reject", "RepoD", "RepoR", "Sapo", "Scope", "SignWeights", "Siren", "Steer",
    "Surrogate", "SurrogateInputs", "TopEntropy", "TrustMask", "Unclipped", "Vespo",
]  # fmt: skip
