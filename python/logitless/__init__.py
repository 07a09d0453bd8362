"""Log-prob, entropy, covariance and clipped policy losses without vocabulary-sized logits.

Everything public is here. Names load on first use, so that importing logitless imports neither
torch nor the compiled core.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from logitless._version import __version__

if TYPE_CHECKING:
    from logitless import advantages, preference
    from logitless.backends.build import build_info
    from logitless.backends.memory import release_memory
    from logitless.diagnostics.check import Check, check
    from logitless.diagnostics.warm import warm
    from logitless.entropy.covariance import Covariance, covariance
    from logitless.entropy.law import EntropyLaw, fit_entropy_law
    from logitless.inputs.sampling_mask import SamplingMask
    from logitless.integrations.transformers.head import Head, head_of
    from logitless.loss.evaluate.inputs import BatchStats, Totals
    from logitless.loss.evaluate.rollout import RolloutWeights
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
        CustomControl,
        CustomSurrogate,
        Dcpo,
        Dro,
        Entropic,
        EntropyAdvantage,
        EntropyBonus,
        EntropyFloor,
        EntropyRatioClip,
        EntropyWeights,
        Gmpo,
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
        SurrogateInputs,
        TopEntropy,
        TrustMask,
        Unclipped,
        Vespo,
    )
    from logitless.loss.spec.controllers import (
        EntropyAnchor,
        LogController,
        PIController,
        RepoController,
        StepController,
    )
    from logitless.loss.spec.corrections import corrections
    from logitless.loss.spec.presets import presets
    from logitless.ops.batch_stats import batch_stats, token_ids
    from logitless.ops.divergence import divergence
    from logitless.ops.gathered import gathered
    from logitless.ops.head.planner.plan import Plan, plan
    from logitless.ops.linear_divergence import linear_divergence
    from logitless.ops.linear_policy_loss import LinearPolicyLossOutput, linear_policy_loss
    from logitless.ops.linear_sample import Sample, linear_sample
    from logitless.ops.linear_token_stats import linear_token_stats
    from logitless.ops.policy_loss import PolicyLossOutput, policy_loss
    from logitless.ops.rollout_weights import rollout_weights
    from logitless.ops.rows.outputs import TokenStats
    from logitless.ops.sharding.vocab_shard import VocabShard
    from logitless.ops.teacher.outputs import Divergence
    from logitless.ops.token_stats import token_stats
    from logitless.ops.vocab_shard import vocab_shard
    from logitless.preference.sequences import sequence_logp

# Public names that are modules themselves.
_MODULES = ("advantages", "preference")
# Public name -> module that holds it.
_HOMES = {
    "Aspo": "logitless.loss.spec",
    "BatchStats": "logitless.loss.evaluate.inputs",
    "BoundedClip": "logitless.loss.spec",
    "Bapo": "logitless.loss.spec",
    "Dcpo": "logitless.loss.spec",
    "Check": "logitless.diagnostics.check",
    "Cispo": "logitless.loss.spec",
    "Clip": "logitless.loss.spec",
    "ClipB": "logitless.loss.spec",
    "ClipCov": "logitless.loss.spec",
    "ClipV": "logitless.loss.spec",
    "Correction": "logitless.loss.spec",
    "Covariance": "logitless.entropy.covariance",
    "CustomControl": "logitless.loss.spec",
    "CustomSurrogate": "logitless.loss.spec",
    "Divergence": "logitless.ops.teacher.outputs",
    "Dro": "logitless.loss.spec",
    "Entropic": "logitless.loss.spec",
    "EntropyAdvantage": "logitless.loss.spec",
    "EntropyAnchor": "logitless.loss.spec.controllers",
    "EntropyBonus": "logitless.loss.spec",
    "EntropyFloor": "logitless.loss.spec",
    "EntropyLaw": "logitless.entropy.law",
    "EntropyRatioClip": "logitless.loss.spec",
    "EntropyWeights": "logitless.loss.spec",
    "Gmpo": "logitless.loss.spec",
    "Head": "logitless.integrations.transformers.head",
    "KL": "logitless.loss.spec",
    "KLCov": "logitless.loss.spec",
    "LinearPolicyLossOutput": "logitless.ops.linear_policy_loss",
    "M2po": "logitless.loss.spec",
    "LogController": "logitless.loss.spec.controllers",
    "NoPolicy": "logitless.loss.spec",
    "OffPolicyMask": "logitless.loss.spec",
    "PIController": "logitless.loss.spec.controllers",
    "Plan": "logitless.ops.head.planner.plan",
    "PolicyLossOutput": "logitless.ops.policy_loss",
    "PolicyLossSpec": "logitless.loss.spec",
    "Reinforce": "logitless.loss.spec",
    "Reject": "logitless.loss.spec",
    "RepoController": "logitless.loss.spec.controllers",
    "RepoD": "logitless.loss.spec",
    "RepoR": "logitless.loss.spec",
    "RolloutWeights": "logitless.loss.evaluate.rollout",
    "Sample": "logitless.ops.linear_sample",
    "SamplingMask": "logitless.inputs.sampling_mask",
    "Sapo": "logitless.loss.spec",
    "SignWeights": "logitless.loss.spec",
    "Siren": "logitless.loss.spec",
    "Steer": "logitless.loss.spec",
    "StepController": "logitless.loss.spec.controllers",
    "SurrogateInputs": "logitless.loss.spec",
    "TokenStats": "logitless.ops.rows.outputs",
    "TopEntropy": "logitless.loss.spec",
    "Totals": "logitless.loss.evaluate.inputs",
    "TrustMask": "logitless.loss.spec",
    "Unclipped": "logitless.loss.spec",
    "Vespo": "logitless.loss.spec",
    "VocabShard": "logitless.ops.sharding.vocab_shard",
    "batch_stats": "logitless.ops.batch_stats",
    "build_info": "logitless.backends.build",
    "check": "logitless.diagnostics.check",
    "corrections": "logitless.loss.spec.corrections",
    "covariance": "logitless.entropy.covariance",
    "divergence": "logitless.ops.divergence",
    "fit_entropy_law": "logitless.entropy.law",
    "gathered": "logitless.ops.gathered",
    "head_of": "logitless.integrations.transformers.head",
    "linear_divergence": "logitless.ops.linear_divergence",
    "linear_policy_loss": "logitless.ops.linear_policy_loss",
    "linear_sample": "logitless.ops.linear_sample",
    "linear_token_stats": "logitless.ops.linear_token_stats",
    "plan": "logitless.ops.head.planner.plan",
    "policy_loss": "logitless.ops.policy_loss",
    "presets": "logitless.loss.spec.presets",
    "release_memory": "logitless.backends.memory",
    "rollout_weights": "logitless.ops.rollout_weights",
    "sequence_logp": "logitless.preference.sequences",
    "token_ids": "logitless.ops.batch_stats",
    "token_stats": "logitless.ops.token_stats",
    "vocab_shard": "logitless.ops.vocab_shard",
    "warm": "logitless.diagnostics.warm",
}

__all__ = [
    "KL",
    "Aspo",
    "Bapo",
    "BatchStats",
    "BoundedClip",
    "Check",
    "Cispo",
    "Clip",
    "ClipB",
    "ClipCov",
    "ClipV",
    "Correction",
    "Covariance",
    "CustomControl",
    "CustomSurrogate",
    "Dcpo",
    "Divergence",
    "Dro",
    "Entropic",
    "EntropyAdvantage",
    "EntropyAnchor",
    "EntropyBonus",
    "EntropyFloor",
    "EntropyLaw",
    "EntropyRatioClip",
    "EntropyWeights",
    "Gmpo",
    "Head",
    "KLCov",
    "LinearPolicyLossOutput",
    "LogController",
    "M2po",
    "NoPolicy",
    "OffPolicyMask",
    "PIController",
    "Plan",
    "PolicyLossOutput",
    "PolicyLossSpec",
    "Reinforce",
    "Reject",
    "RepoController",
    "RepoD",
    "RepoR",
    "RolloutWeights",
    "Sample",
    "SamplingMask",
    "Sapo",
    "SignWeights",
    "Siren",
    "Steer",
    "StepController",
    "SurrogateInputs",
    "TokenStats",
    "TopEntropy",
    "Totals",
    "TrustMask",
    "Unclipped",
    "Vespo",
    "VocabShard",
    "__version__",
    "advantages",
    "batch_stats",
    "build_info",
    "check",
    "corrections",
    "covariance",
    "divergence",
    "fit_entropy_law",
    "gathered",
    "head_of",
    "linear_divergence",
    "linear_policy_loss",
    "linear_sample",
    "linear_token_stats",
    "plan",
    "policy_loss",
    "preference",
    "presets",
    "release_memory",
    "rollout_weights",
    "sequence_logp",
    "token_ids",
    "token_stats",
    "vocab_shard",
    "warm",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"logitless.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'logitless' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOMES) | set(_MODULES))
