"""The share of each token in the loss: explicit normalisers, so that micro-batches add up."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from logitless.inputs.checks import whole
from logitless.inputs.sequences import Float64s, valid_lengths
from logitless.inputs.tokens import Tokens
from logitless.loss.spec import PolicyLossSpec, TopEntropy


class _Totals(NamedTuple):
    tokens: int
    sequences: int
    world_size: int = 1


class Totals(_Totals):
    """Counts over the whole optimizer batch: all micro-batches of all ranks.

    tokens: valid ones (mask true). sequences: those with at least one valid token; 0 where nobody
    counted them, which only losses that normalise by tokens accept. world_size: the ranks counted
    over, which is what `grad_scale` has to be where the gradients of ranks are averaged (DDP,
    FSDP).
    """

    __slots__ = ()

    def __new__(cls, tokens: int, sequences: int, world_size: int = 1) -> Totals:
        counts = (("tokens", tokens, 0), ("sequences", sequences, 0), ("world_size", world_size, 1))
        return super().__new__(
            cls, *(whole(f"Totals.{name}", value, least=least) for name, value, least in counts)
        )


def count_totals(tokens: Tokens, *, sequences: bool = True) -> Totals:
    """The totals of a call that is the whole batch."""
    known = sequences and tokens.sequences is not None
    return Totals(
        tokens=tokens.number_valid,
        sequences=int(np.count_nonzero(valid_lengths(tokens))) if known else 0,
    )


def selection_size(fraction: float, tokens: int) -> int:
    """k of a control that selects a share of the batch's valid tokens: at least one."""
    return max(int(fraction * tokens), 1)


def token_weights(tokens: Tokens, spec: PolicyLossSpec, totals: Totals | None) -> float | Float64s:
    """w with which the batch loss is the sum of w * loss_t over the valid tokens of all calls.

    One number where it is the same for all, else [N] with 0 outside the mask. totals=None: this
    call is the whole batch.
    """
    local = count_totals(tokens, sequences=spec.per_sequence)
    total = local if totals is None else totals
    _check_counts(spec, local, total)
    if spec.aggregation == "token-sum":
        return 1.0
    if spec.aggregation == "token-mean":
        return 1.0 / max(_counted(spec, total.tokens), 1)
    sequences = tokens.whole()
    per_batch = 1.0 / max(total.sequences, 1)
    if spec.aggregation == "seq-mean-token-sum":
        return per_batch
    if spec.aggregation == "seq-mean-token-mean":
        shares = per_batch / np.maximum(valid_lengths(tokens), 1)
        return np.where(tokens.mask, shares[sequences.of_token], 0.0)
    # a batch padded to no width has no token whose share this would be
    return per_batch / max(_norm(spec, sequences.width if totals is None else None), 1)


def _check_counts(spec: PolicyLossSpec, local: Totals, total: Totals) -> None:
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


def _counted(spec: PolicyLossSpec, tokens: int) -> int:
    """The tokens that a token mean divides by."""
    if isinstance(spec.control, TopEntropy) and spec.control.normaliser == "selected":
        return min(selection_size(spec.control.fraction, tokens), tokens)
    return tokens


def _norm(spec: PolicyLossSpec, width: int | None) -> int:
    length = width if spec.max_length is None else spec.max_length
    if length is None:
        raise ValueError(
            "aggregation='seq-mean-token-sum-norm' needs spec.max_length (the generation limit in "
            "tokens) unless one padded [B, T] call is the whole batch, got max_length=None"
        )
    return length
