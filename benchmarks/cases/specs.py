"""The policy losses that are timed."""

from __future__ import annotations

from dataclasses import replace

import logitless as ll

# Clip range of the policy loss, and the dual clip that some peers cannot turn off.
CLIP, DUAL = 0.2, 3.0
SPEC = ll.PolicyLossSpec(surrogate=ll.Clip(CLIP, CLIP, dual=DUAL), aggregation="token-mean")
BONUS = 0.01
SPEC_WITH_BONUS = replace(SPEC, entropy=ll.EntropyBonus(BONUS))

# Clip-Cov at verl's own cases, and with its clip.
CLIP_CONTROL = ll.ClipCov(fraction=2e-4, low=1.0, high=5.0)
CLIP_COV = ll.PolicyLossSpec(
    surrogate=ll.Clip(CLIP, CLIP), control=CLIP_CONTROL, aggregation="token-mean"
)
KL_COV = ll.presets["kl_cov"]
assert isinstance(KL_COV.control, ll.KLCov)
KL_CONTROL: ll.KLCov = KL_COV.control
# Of a batch's statistics, and of the weights of tokens that another engine has drawn.
STATS_SPEC = KL_COV
WEIGHTS = ll.corrections["tis"]
