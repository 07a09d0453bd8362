"""A spec and the tokens of a call, evaluated in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from logitless.backends.token_kernels.protocol import SUMS, LossTerms
from logitless.inputs.records import changed
from logitless.inputs.tokens import Bools, Float64s, Floats, Int64s, Tokens
from logitless.loss.evaluate.chosen_entropy import chosen_weights
from logitless.loss.evaluate.inputs import Means
from logitless.loss.evaluate.params import loss_params
from logitless.loss.evaluate.policy_term.importance import correction_sums
from logitless.loss.evaluate.policy_term.likely import likely_term, likely_weights, pushed
from logitless.loss.evaluate.policy_term.policy_weights import policy_weights
from logitless.loss.evaluate.policy_term.ratio import (
    old_policy,
    policy_term,
    sequence_gradient,
    shares_sequence_gradient,
)
from logitless.loss.evaluate.policy_term.shaped import shaped
from logitless.loss.spec import AdvantageControl, BatchClip, Entropic, KLCov, PolicyLossSpec, Siren
from logitless.loss.spec.policy_spec import Coefficients

_NO_MEANS = Means(0.0, 0.0, 0)


class TokenLoss(NamedTuple):
    """What one call adds to the batch: sums add up over calls and ranks."""

    # float64 [len(SUMS)], and CORRECTION_SUMS after them with a correction
    sums: Float64s
    g_logp: Floats  # [N] d loss / d logp
    g_entropy: Floats | None  # [N] d loss / d entropy; None without an entropy term


@dataclass(frozen=True)
class TokenInputs:
    """The tokens of a call and what their coefficients depend on, all of it known."""

    tokens: Tokens
    spec: PolicyLossSpec
    coefficients: Coefficients
    # share of each token in the batch: [N], or one number; for each part of the loss
    weights: tuple[float | Float64s, ...]
    selected: Bools | None  # [N]
    # None where they are not known: no cov_mean
    means: Means | None
    grad_scale: float
    # what the metrics of each part are multiplied by
    scales: tuple[Any, ...] | None = None

    def rows(self, index: Int64s) -> TokenInputs:
        """Some of the tokens, for a loss that looks at no sequence."""
        given: Any = self.weights
        weights = tuple([x[index] if getattr(x, "ndim", 0) > 0 else x for x in given])
        selected = None if self.selected is None else self.selected[index]
        return changed(self, tokens=self.tokens.at(index), weights=weights, selected=selected)

    def with_values(self, logp: Floats, entropy: Floats | None) -> TokenInputs:
        """The same tokens with these."""
        return changed(self, tokens=self.tokens.with_values(logp, entropy))


def evaluate(inputs: TokenInputs) -> TokenLoss:
    """The sums of grad_scale * weights * loss_t and of the metrics, and the coefficients."""
    parts = inputs.spec.parts
    plain = len(parts) == 1 and not isinstance(inputs.spec.control, (AdvantageControl, Entropic))
    if plain or inputs.tokens.logp.dtype == inputs.tokens.xp.float64:
        return _evaluate(inputs, parts)
    # what is added up of parts, or to advantages, rounds once
    tokens, xp, dtype = inputs.tokens, inputs.tokens.xp, inputs.tokens.logp.dtype
    entropy = None if tokens.entropy is None else xp.cast(tokens.entropy, xp.float64)
    wider = inputs.with_values(xp.cast(tokens.logp, xp.float64), entropy)
    sums, *wide = _evaluate(wider, parts)
    with np.errstate(over="ignore"):
        g_logp, g_entropy = (None if g is None else xp.cast(g, dtype) for g in wide)
    if tokens.kernels.on_host:
        for g in (g_logp, g_entropy):
            if g is not None:
                check_coefficients(inputs, g)
    return TokenLoss(sums, g_logp, g_entropy)


def _evaluate(inputs: TokenInputs, parts: tuple[PolicyLossSpec, ...]) -> TokenLoss:
    tokens, spec, coefficients = inputs.tokens, inputs.spec, inputs.coefficients
    kernels, on_host = tokens.kernels, tokens.kernels.on_host
    main = parts[0]
    if isinstance(spec.control, AdvantageControl):
        tokens = shaped(tokens, spec.control, coefficients.penalty)
    term = policy_term(tokens, spec)
    means = _NO_MEANS if inputs.means is None else inputs.means
    factor, rollout = policy_weights(tokens, spec, means)
    control, shared = spec.control, shares_sequence_gradient(spec)
    held = isinstance(spec.entropy, Siren)
    chosen = means.log_bounds if isinstance(spec.surrogate, BatchClip) else (None, None)
    terms = LossTerms(
        weights=inputs.weights[0],
        old_logp=old_policy(tokens, spec),
        kl_logp=None if main.kl is None else tokens.reference(main.kl.against),
        penalty_logp=tokens.reference(control.against) if isinstance(control, KLCov) else None,
        selected=inputs.selected,
        log_ratio=term.log_ratio,
        factor=factor,
        precomputed_loss=term.loss,
        precomputed_slope=term.slope,
        mean_advantage=means.advantage,
        mean_logp=means.logp,
        grad_scale=inputs.grad_scale,
        entropy_coefficient=0.0 if main.entropy is None or held else coefficients.entropy,
        kl_coefficient=coefficients.kl,
        penalty_coefficient=coefficients.penalty,
        log_low=chosen[0],
        log_high=chosen[1],
    )
    params = loss_params(main, kernels)
    sums, g_logp, g_entropy, g_policy = kernels.loss(
        tokens, params, terms, entropy=main.entropy is not None, policy=shared
    )
    if on_host:
        _check_sums(inputs, sums, g_logp)
    if shared:
        with np.errstate(over="ignore", invalid="ignore"):
            g = sequence_gradient(tokens, spec, term, g_policy)
            g_logp += tokens.xp.cast(g, g_logp.dtype)
        if on_host:
            check_coefficients(inputs, g_logp)
    if isinstance(control, Entropic):
        more, g, _ = _likely(inputs, terms, control, means.likely)
        sums, g_logp = sums + more, g_logp + g
        if on_host:
            check_coefficients(inputs, g_logp)
    if inputs.scales is not None:
        sums = _scaled(tokens, sums, inputs.scales[0])
    for i, part in enumerate(parts[1:], 1):
        more, g, g_of_entropy = _term(inputs, terms, part, i)
        sums, g_logp = sums + more, g_logp + g
        g_entropy = g_of_entropy if part.entropy is not None else g_entropy
        if on_host:
            check_coefficients(inputs, g_logp)
    if rollout is not None and spec.correction is not None:
        own = correction_sums(tokens, spec.correction, rollout)
        sums = tokens.xp.join(sums, tokens.xp.vector(own, sums))
    return TokenLoss(sums, g_logp, g_entropy)


def _likely(inputs: TokenInputs, of_all: LossTerms, control: Entropic, share: Any) -> TokenLoss:
    """EntroPIC's term: what it adds to the sums and slopes."""
    tokens, kernels = inputs.tokens, inputs.tokens.kernels
    terms = _without_parts(of_all)._replace(
        weights=likely_weights(tokens, control, inputs.weights[0], share), factor=of_all.factor
    )
    sums, g_logp, *_ = kernels.loss(
        pushed(tokens, inputs.coefficients.penalty),
        loss_params(likely_term(inputs.spec), kernels), terms, entropy=False, policy=False,
    )  # fmt: skip
    if kernels.on_host:
        _check_sums(inputs, sums, g_logp)
    return TokenLoss(_only(tokens, sums, "loss", "policy"), g_logp, None)


def _term(inputs: TokenInputs, of_all: LossTerms, part: PolicyLossSpec, i: int) -> TokenLoss:
    """A KL or entropy term that has its own aggregation: what it adds to the sums and slopes."""
    tokens, coefficients = inputs.tokens, inputs.coefficients
    terms = _without_parts(of_all)._replace(
        weights=inputs.weights[i],
        kl_logp=None if part.kl is None else tokens.reference(part.kl.against),
        entropy_coefficient=0.0 if part.entropy is None else coefficients.entropy,
    )
    constant = 0.0
    if isinstance(part.entropy, Siren):
        terms, constant = _tangent(inputs, terms, part.entropy)
    kernels = tokens.kernels
    sums, g_logp, g_entropy, _ = kernels.loss(
        tokens, loss_params(part, kernels), terms, entropy=part.entropy is not None, policy=False
    )
    if kernels.on_host:
        _check_sums(inputs, sums, g_logp)
    if inputs.scales is not None:
        sums = _scaled(tokens, sums, inputs.scales[i])
    if isinstance(part.entropy, Siren):
        sums = sums + tokens.xp.vector((constant, *[0.0] * (len(SUMS) - 1)), sums)
    return TokenLoss(_only(tokens, sums, "loss", "kl"), g_logp, g_entropy)


def _tangent(inputs: TokenInputs, terms: LossTerms, term: Siren) -> tuple[LossTerms, Any]:
    """coefficient * (mean - anchor)^2 at the batch's mean, as a bonus for the chosen tokens and a
    constant that all valid tokens of the batch share."""
    tokens, means = inputs.tokens, inputs.means
    assert means is not None
    mean = means.selected_entropy
    anchor = mean if term.anchor is None else term.anchor
    away = inputs.coefficients.entropy * (mean - anchor)
    held = inputs.grad_scale * away * (mean + anchor)
    constant = -held * tokens.kernels.total(tokens, terms.weights)
    weights = chosen_weights(tokens, term, terms.weights)
    return terms._replace(weights=weights, entropy_coefficient=-2.0 * away), constant


def _without_parts(terms: LossTerms) -> LossTerms:
    """For a loss beside them: of the same tokens, with a policy term of its own or none."""
    return terms._replace(
        kl_logp=None,
        penalty_logp=None,
        selected=None,
        log_ratio=None,
        factor=None,
        precomputed_loss=None,
        precomputed_slope=None,
        entropy_coefficient=0.0,
        log_low=None,
        log_high=None,
    )


def _only(tokens: Tokens, sums: Float64s, *names: str) -> Float64s:
    own = tokens.xp.vector(tuple(float(name in names) for name in SUMS), sums)
    return tokens.xp.where(own > 0, sums, 0.0)


def _scaled(tokens: Tokens, sums: Float64s, scale: Any) -> Float64s:
    """With a mean of the call in place of its share of the batch's."""
    of_part = ("policy", "kl")
    return sums * tokens.xp.vector(tuple(scale if x in of_part else 1.0 for x in SUMS), sums)


def check_coefficients(inputs: TokenInputs, g: Any) -> None:
    """Those made outside of the kernel: the first that is no number has its token named."""
    flat = g.reshape(-1)
    good = np.isfinite(flat)
    if not good.all():
        i = int(good.argmin())
        raise ValueError(_overflow(inputs, i, "a finite one", flat[i]))


def _check_sums(inputs: TokenInputs, sums: Float64s, g_logp: Floats) -> None:
    _, bad, overflow, loss = sums[-4:].tolist()
    if bad >= 0:
        raise ValueError(_bad_token(inputs.tokens, int(bad)))
    if overflow >= 0:
        i = int(overflow)
        raise ValueError(_overflow(inputs, i, loss, g_logp[i]))


def _overflow(inputs: TokenInputs, i: int, loss: object, slope: float) -> str:
    from logitless.loss.spec.presets import presets

    tokens, grad_scale = inputs.tokens, inputs.grad_scale
    spec = inputs.spec.with_coefficients(inputs.coefficients)
    name = next((f"presets[{name!r}]" for name, x in presets.items() if x == spec), "the spec")
    old = old_policy(tokens, spec)
    values = {
        "log ratio": None if old is None else float(tokens.logp[i]) - float(old[i]),
        "advantage": tokens.advantages[i],
        "weight": tokens.weights,
        "logp": tokens.logp[i],
        "reference's logp": None if spec.kl is None else tokens.reference(spec.kl.against),
        "entropy": tokens.entropy,
        "grad_scale": None if grad_scale == 1 else grad_scale,
    }
    got = ", ".join(
        f"{what} {x[i] if isinstance(x, np.ndarray) else x}"
        for what, x in values.items()
        if x is not None
    )
    return (
        "the loss of a token and its derivative must be finite in the dtype of logp, "
        f"got {loss} and {slope} at {tokens.place(i)}: {got}, under {name} with "
        f"ratio={spec.ratio!r}, surrogate={spec.surrogate}, kl={spec.kl}; mask the token, or clip"
    )


def _bad_token(tokens: Tokens, i: int) -> str:
    names = ("logp", "old_logp", "advantages", "entropy", "ref_logp", "rollout_logp")
    values = {name: getattr(tokens, name) for name in names}
    got = ", ".join(f"{name}={value[i]}" for name, value in values.items() if value is not None)
    return (
        f"{', '.join(names)} must be finite where the mask is true, got {got} at {tokens.place(i)}"
    )
