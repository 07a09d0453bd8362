"""The mean entropy of each sequence's least certain tokens: what SIREN holds at its anchor."""

from __future__ import annotations

from typing import Any

from logitless.backends.token_kernels.arrays import positive_or_one
from logitless.backends.token_kernels.protocol import Reduce
from logitless.inputs.tokens import Bools, Float64s, Tokens
from logitless.loss.evaluate.means import exact_means, finite_values
from logitless.loss.evaluate.sequences import kernels_of, per_token, valid
from logitless.loss.spec import Siren


def chosen_mean(tokens: Tokens, term: Siren, reduce: Reduce) -> Any:
    """Over the sequences of all ranks, each with the mean over its chosen tokens or 0."""
    if tokens.entropy is None:
        raise ValueError(f"spec.entropy={term} needs entropy, got entropy=None")
    h = finite_values(tokens, "entropy", tokens.entropy)
    xp, names = tokens.xp, ("entropy", "entropy")
    lengths = xp.cast(kernels_of(tokens).lengths(tokens), xp.float64)
    # each sequence is 1 of its tokens' shares
    share = xp.divided(1.0, xp.maximum(per_token(tokens, lengths), 1.0))
    found = exact_means(tokens, chosen_weights(tokens, term, share) * h, share, names, reduce)
    return found.advantage / positive_or_one(found.logp)


def chosen_weights(tokens: Tokens, term: Siren, share: Float64s) -> Float64s:
    """[N] of each token's share in a mean over all of its sequence: its share in the mean over the
    chosen ones."""
    xp, kernels = tokens.xp, kernels_of(tokens)
    chosen = _chosen(tokens, term)
    number = kernels.sums(tokens, xp.cast(chosen, xp.float64))
    lengths = xp.cast(kernels.lengths(tokens), xp.float64)
    return xp.where(chosen, share * per_token(tokens, lengths / xp.maximum(number, 1.0)), 0.0)


def _chosen(tokens: Tokens, term: Siren) -> Bools:
    assert tokens.entropy is not None
    h = valid(tokens, tokens.entropy)
    least = kernels_of(tokens).ranked(tokens, h, term.quantile)
    return tokens.mask & (h > per_token(tokens, least))
