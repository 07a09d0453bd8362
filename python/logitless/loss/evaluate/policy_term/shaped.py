"""Advantages as a control changes them."""

from __future__ import annotations

from logitless.inputs.records import changed
from logitless.inputs.tokens import Float64s, Tokens
from logitless.loss.evaluate.sequences import valid
from logitless.loss.spec import AdvantageControl, EntropyAdvantage, RepoR


def shaped(tokens: Tokens, control: AdvantageControl, coefficient: float) -> Tokens:
    """The tokens with the control's advantages; `coefficient`: the control's number that moves."""
    advantages = _advantages(tokens, control, coefficient)
    return changed(tokens, advantages=tokens.xp.cast(advantages, tokens.advantages.dtype))


def _advantages(tokens: Tokens, control: AdvantageControl, coefficient: float) -> Float64s:
    xp, a, logp = tokens.xp, valid(tokens, tokens.advantages), valid(tokens, tokens.logp)
    if isinstance(control, RepoR):
        # the sign stays: a factor that would turn it is 0
        return a * xp.maximum(1.0 - xp.where(a > 0, 1.0, -1.0) * coefficient * logp, 0.0)
    assert tokens.entropy is not None
    h = valid(tokens, tokens.entropy)
    if isinstance(control, EntropyAdvantage):
        return a + xp.minimum(control.alpha * h, xp.divided(abs(a), control.kappa))
    return a - coefficient * (logp + h)
