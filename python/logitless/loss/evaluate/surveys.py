"""What the policy term of a spec wants to know of the whole batch, or of a call."""

from __future__ import annotations

import dataclasses

from logitless.backends.token_kernels.protocol import Reduce
from logitless.inputs.tokens import Tokens
from logitless.loss.evaluate.chosen_entropy import chosen_mean
from logitless.loss.evaluate.inputs import Means
from logitless.loss.evaluate.means import batch_means, exact_means, finite_values, one_rank
from logitless.loss.evaluate.policy_term.clip_bounds import batch_bounds
from logitless.loss.evaluate.policy_term.importance import importance
from logitless.loss.evaluate.policy_term.likely import likely_share
from logitless.loss.evaluate.policy_term.policy_weights import entropy_change, entropy_credit
from logitless.loss.evaluate.sequences import kernels_of, valid
from logitless.loss.spec import (
    BatchClip,
    Entropic,
    EntropyWeights,
    PolicyLossSpec,
    Scope,
    Siren,
    Steer,
)


def spec_means(tokens: Tokens, spec: PolicyLossSpec, reduce: Reduce = one_rank) -> Means:
    """The batch means that the spec's policy term uses beside those of A and logp as well."""
    means = batch_means(tokens, reduce)
    if isinstance(spec.control, EntropyWeights):
        means = means._replace(credit=_mean_credit(tokens, spec.control, reduce))
    if spec.correction is not None and spec.correction.normalize:
        if tokens.rollout_logp is None:
            raise ValueError(
                f"rollout_logp must be given with spec.correction={spec.correction}, got None"
            )
        if tokens.old_logp is None:
            tokens = dataclasses.replace(tokens, old_logp=tokens.logp)
        w = valid(tokens, importance(tokens, spec.correction).weights)
        names = ("rollout weights", "rollout weights")
        means = means._replace(importance=exact_means(tokens, w, w, names, reduce).logp)
    return surveyed(tokens, spec, means, "batch", reduce)


def surveyed(
    tokens: Tokens, spec: PolicyLossSpec, means: Means, scope: Scope, reduce: Reduce = one_rank
) -> Means:
    """The means with what the parts of this scope look for among all tokens."""
    surrogate, control = spec.surrogate, spec.control
    if isinstance(control, Steer) and control.scope == scope:
        means = means._replace(change_range=_change_range(tokens, reduce))
    if isinstance(control, Entropic) and control.scope == scope:
        means = means._replace(likely=likely_share(tokens, control, reduce))
    if isinstance(spec.entropy, Siren) and spec.entropy.scope == scope:
        means = means._replace(selected_entropy=chosen_mean(tokens, spec.entropy, reduce))
    if isinstance(surrogate, BatchClip) and surrogate.scope == scope:
        if spec.ratio == "inference" and tokens.rollout_logp is None:
            raise ValueError(
                f"rollout_logp must be given with spec.surrogate={surrogate}, got None"
            )
        return means._replace(log_bounds=batch_bounds(tokens, spec, reduce))
    return means


def _change_range(tokens: Tokens, reduce: Reduce) -> tuple[float, float]:
    finite_values(tokens, "entropy", tokens.entropy)
    if tokens.old_logp is None:
        tokens = dataclasses.replace(tokens, old_logp=tokens.logp)
    return kernels_of(tokens).extremes(tokens, tokens.mask, entropy_change(tokens), reduce)


def _mean_credit(tokens: Tokens, control: EntropyWeights, reduce: Reduce) -> tuple[float, float]:
    """The means of the entropy credit over the tokens with A > 0 and over those with A < 0."""
    finite_values(tokens, "entropy", tokens.entropy)
    credit, a = entropy_credit(tokens, control), valid(tokens, tokens.advantages)
    names = ("entropy", "entropy")
    positive, negative = (
        exact_means(dataclasses.replace(tokens, mask=side), credit, credit, names, reduce).logp
        for side in (a > 0, a < 0)
    )
    return positive, negative
