"""EntroPIC's term over the tokens that the policy finds likely."""

from __future__ import annotations

import math
from typing import Any

from logitless.backends.token_kernels.arrays import positive_or_one
from logitless.backends.token_kernels.protocol import Reduce
from logitless.inputs.records import changed
from logitless.inputs.tokens import Bools, Float64s, Tokens
from logitless.loss.evaluate.means import exact_means
from logitless.loss.evaluate.sequences import valid
from logitless.loss.spec import Entropic, PolicyLossSpec, Reinforce, Unclipped

_OF_RATIO = PolicyLossSpec(surrogate=Unclipped())
_OF_LOGP = PolicyLossSpec("none", Reinforce())


def likely_share(tokens: Tokens, control: Entropic, reduce: Reduce) -> Any:
    """The likely ones among the valid tokens of all ranks."""
    likely = tokens.xp.cast(_likely(tokens, control), tokens.xp.float64)
    return exact_means(tokens, likely, likely, ("1", "1"), reduce).advantage


def likely_term(spec: PolicyLossSpec) -> PolicyLossSpec:
    """The term as a loss: of each token's own ratio, unclipped."""
    return _OF_LOGP if spec.ratio == "none" else _OF_RATIO


def pushed(tokens: Tokens, coefficient: float) -> Tokens:
    """The tokens with the advantages of the term."""
    a = abs(valid(tokens, tokens.advantages))
    return changed(tokens, advantages=tokens.xp.cast(coefficient * a, tokens.advantages.dtype))


def likely_weights(tokens: Tokens, control: Entropic, weight: Any, share: Any) -> Float64s:
    """[N] of a token's weight in a mean over all: its weight in one over the likely ones."""
    xp = tokens.xp
    each = xp.divided(weight, positive_or_one(share))
    return xp.where(_likely(tokens, control), each, 0.0)


def _likely(tokens: Tokens, control: Entropic) -> Bools:
    return tokens.mask & (valid(tokens, tokens.logp) > math.log(control.threshold))
