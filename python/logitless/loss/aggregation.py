"""The share of each token in the loss: explicit normalisers, so that micro-batches add up."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from logitless.loss.spec import PolicyLossSpec
from logitless.loss.tokens import Int64s, Sequences, Tokens


class Totals(NamedTuple):
    """Counts over the whole optimizer batch: all micro-batches of all ranks.

    tokens: valid ones (mask true). sequences: those with at least one valid token; 0 where nobody
    counted them, which only losses that normalise by tokens accept. world_size: the ranks counted
    over, which is what `grad_scale` has to be where the gradients of ranks are averaged (DDP,
    FSDP).
    """

    tokens: int
    sequences: int
    world_size: int = 1


def count_totals(tokens: Tokens) -> Totals:
    """The totals of a call that is the whole batch."""
    return Totals(
        tokens=int(np.count_nonzero(tokens.mask)),
        sequences=0 if tokens.sequences is None else int(np.count_nonzero(valid_lengths(tokens))),
    )


def valid_lengths(tokens: Tokens) -> Int64s:
    """Valid tokens of each sequence, [B]."""
    sequences = sequences_of(tokens)
    return np.bincount(sequences.of_token[tokens.mask], minlength=sequences.number)


def sequences_of(tokens: Tokens) -> Sequences:
    if tokens.sequences is None:
        raise ValueError(
            "a loss per sequence needs padded [B, T] inputs or cu_seqlens, "
            "got packed [N] inputs and cu_seqlens=None"
        )
    return tokens.sequences


def token_weights(
    tokens: Tokens, spec: PolicyLossSpec, totals: Totals | None
) -> npt.NDArray[np.float64]:
    """w with which the batch loss is the sum of w * loss_t over all calls; 0 if masked, else > 0.

    totals=None: this call is the whole batch.
    """
    mask, local = tokens.mask, count_totals(tokens)
    total = local if totals is None else totals
    if local.tokens > total.tokens or (spec.per_sequence and local.sequences > total.sequences):
        raise ValueError(
            f"totals must count the whole optimizer batch, got {total}, but this call alone has "
            f"{local.tokens} valid tokens and {local.sequences} sequences"
        )
    if spec.aggregation == "token-sum":
        return mask.astype(np.float64)
    if spec.aggregation == "token-mean":
        return mask / float(max(total.tokens, 1))
    sequences = sequences_of(tokens)
    per_sequence = mask / float(max(total.sequences, 1))
    if spec.aggregation == "seq-mean-token-sum":
        return per_sequence
    if spec.aggregation == "seq-mean-token-mean":
        return per_sequence / np.maximum(valid_lengths(tokens), 1)[sequences.of_token]
    return per_sequence / _norm(spec, sequences.width if totals is None else None)


def _norm(spec: PolicyLossSpec, width: int | None) -> int:
    length = width if spec.max_length is None else spec.max_length
    if length is None:
        raise ValueError(
            "aggregation='seq-mean-token-sum-norm' needs spec.max_length (the generation limit in "
            "tokens) unless one padded [B, T] call is the whole batch, got max_length=None"
        )
    return length
