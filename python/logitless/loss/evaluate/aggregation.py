"""The share of each token in the loss: explicit normalisers, so that micro-batches add up."""

from __future__ import annotations

from typing import Any, NamedTuple

from logitless.backends.token_kernels.arrays import at_least, at_most
from logitless.inputs.tokens import Float64s, Int64s, Tokens
from logitless.loss.evaluate.inputs import Totals
from logitless.loss.evaluate.sequences import kernels_of, per_token
from logitless.loss.spec import PolicyLossSpec, TopEntropy


class Counts(NamedTuple):
    """Of a call: its valid tokens, and its sequences with any; 0 where nobody counted them. On a
    device they are arrays without dimensions."""

    tokens: Any
    sequences: Any


def count(tokens: Tokens, *, sequences: bool = True) -> Counts:
    """The totals of a call that is the whole batch."""
    if not sequences or tokens.sequences is None:
        return Counts(tokens.number_valid, 0)
    (number,) = tokens.xp.numbers(count_sequences(tokens))
    return Counts(tokens.number_valid, number)


def count_sequences(tokens: Tokens) -> Int64s:
    """[1]"""
    if tokens.sequences is None:
        return tokens.xp.lengths(1, 0, tokens.logp)
    return (kernels_of(tokens).lengths(tokens) > 0).sum().reshape(1)


def token_weights(tokens: Tokens, spec: PolicyLossSpec, totals: Totals | None) -> Float64s:
    """w with which the batch loss is the sum of w * loss_t over the valid tokens of all calls.

    One number where it is the same for all, else [N] with 0 outside the mask. totals=None: this
    call is the whole batch.
    """
    local, xp = count(tokens, sequences=spec.per_sequence), tokens.xp
    if totals is not None and tokens.kernels.on_host:
        _check_counts(spec, local, totals)
    total: Any = local if totals is None else totals
    if spec.aggregation == "token-sum":
        return 1.0
    if spec.aggregation == "token-mean":
        return xp.inverse(_counted(xp, spec, total.tokens))
    sequences = tokens.require_sequences()
    per_batch = xp.inverse(total.sequences)
    if spec.aggregation == "seq-mean-token-sum":
        return per_batch
    if spec.aggregation == "seq-mean-token-mean":
        lengths = xp.cast(kernels_of(tokens).lengths(tokens), xp.float64)
        shares = xp.divided(per_batch, xp.maximum(lengths, 1))
        return xp.where(tokens.mask, per_token(tokens, shares), 0.0)
    # a batch padded to no width has no token whose share this would be
    return per_batch / max(_norm(spec, sequences.width if totals is None else None), 1)


def part_weights(
    tokens: Tokens, spec: PolicyLossSpec, totals: Totals | None
) -> tuple[float | Float64s, ...]:
    """`token_weights` of each part of the loss."""
    return tuple([token_weights(tokens, part, totals) for part in spec.parts])


def mean_scales(tokens: Tokens, spec: PolicyLossSpec, totals: Totals | None) -> tuple[Any, ...]:
    """What makes of a call's share of a mean, for each part of the loss, the mean of the call."""
    if totals is None:
        return tuple([1.0 for _ in spec.parts])
    local = count(tokens, sequences=spec.per_sequence)
    return tuple([_mean_scale(tokens.xp, part, local, totals) for part in spec.parts])


def _mean_scale(xp: Any, spec: PolicyLossSpec, local: Counts, total: Totals) -> Any:
    if spec.aggregation == "token-sum":
        return 1.0
    if spec.aggregation == "token-mean":
        return _counted(xp, spec, total.tokens) / at_least(_counted(xp, spec, local.tokens), 1)
    return total.sequences / at_least(local.sequences, 1)


def _check_counts(spec: PolicyLossSpec, local: Counts, total: Totals) -> None:
    """What counts alone can tell: a call that exceeds its batch, and some of the cut sequences."""
    counted = spec.aggregation.startswith("seq-") or (spec.per_sequence and total.sequences > 0)
    if local.tokens > total.tokens or (counted and local.sequences > total.sequences):
        raise ValueError(
            f"totals must count the whole optimizer batch, got {total}, but this call alone has "
            f"{local.tokens} valid tokens and {local.sequences} sequences"
        )
    if counted and local.sequences == total.sequences and local.tokens < total.tokens:
        raise ValueError(
            "a loss per sequence needs each sequence whole in one call, got one cut: this call has "
            f"tokens of all {total.sequences} sequences of the batch, but only {local.tokens} of "
            f"its {total.tokens} valid tokens"
        )


def _counted(xp: Any, spec: PolicyLossSpec, tokens: Any) -> Any:
    """The tokens that a token mean divides by."""
    if isinstance(spec.control, TopEntropy) and spec.control.normaliser == "selected":
        return at_most(xp.part(spec.control.fraction, tokens), tokens)
    return tokens


def _norm(spec: PolicyLossSpec, width: int | None) -> int:
    length = width if spec.max_length is None else spec.max_length
    if length is None:
        raise ValueError(
            "aggregation='seq-mean-token-sum-norm' needs spec.max_length (the generation limit in "
            "tokens) unless one padded [B, T] call is the whole batch, got max_length=None"
        )
    return length
