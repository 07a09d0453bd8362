"""Sums over the sequences of a call, and whether every sequence is whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from logitless import _core
from logitless.inputs.tokens import Int64s, Tokens

Float64s = npt.NDArray[np.float64]


def exp(tokens: Tokens, x: Float64s) -> Float64s:
    """exp of numbers of these tokens, the same bits on every machine, which NumPy does not
    promise."""
    out = np.empty_like(x)
    _core.tokens.exp(x, out, tokens.threads)
    return out


def valid(tokens: Tokens, values: npt.NDArray[Any]) -> Float64s:
    """float64, 0 outside the mask."""
    return np.where(tokens.mask, values, 0.0).astype(np.float64, copy=False)


def log_ratio_of(tokens: Tokens, above: str, below: str) -> Float64s:
    """The difference of two log-probs of `tokens` by name, float64, 0 outside the mask. Inside it
    both must be finite: a sum over a sequence would lose the place of one that is not."""
    a, b = getattr(tokens, above), getattr(tokens, below)
    with np.errstate(invalid="ignore"):
        ratio = valid(tokens, a.astype(np.float64) - b)
    bad = np.flatnonzero(~np.isfinite(ratio))
    if bad.size:
        i = int(bad[0])
        raise ValueError(
            f"{above} and {below} must be finite where the mask is true, got {a[i]} and {b[i]} at "
            f"{tokens.place(i)}"
        )
    return ratio


def valid_lengths(tokens: Tokens) -> Int64s:
    """Valid tokens of each sequence, [B]."""
    sequences = tokens.whole()
    if sequences.width is not None:
        rows = tokens.mask.reshape(sequences.number, sequences.width)
        return np.asarray(np.count_nonzero(rows, axis=1), np.int64)
    return np.bincount(sequences.of_token[tokens.mask], minlength=sequences.number)


def sequence_sums(tokens: Tokens, values: Float64s) -> Float64s:
    """The sum over each sequence's valid tokens, [B]; values are 0 or finite outside the mask."""
    sequences, mask = tokens.whole(), tokens.mask
    sums = np.bincount(sequences.of_token[mask], weights=values[mask], minlength=sequences.number)
    # of no tokens at all NumPy makes integers
    return sums.astype(np.float64, copy=False)


def sequence_means(tokens: Tokens, values: Float64s) -> Float64s:
    """The mean over each sequence's valid tokens, [B]; 0 where it has none."""
    return sequence_sums(tokens, values) / np.maximum(valid_lengths(tokens), 1)


def whole_sequences(tokens: Tokens) -> Int64s:
    """[S, 2]: the smallest id and the number of valid tokens of each sequence that has any."""
    sequences, lengths = tokens.whole(), valid_lengths(tokens)
    first = np.full(sequences.number, np.iinfo(np.int64).max)
    np.minimum.at(first, sequences.of_token[tokens.mask], tokens.ids[tokens.mask])
    table = np.stack([first, lengths], axis=1)[lengths > 0]
    return np.asarray(table[np.argsort(table[:, 0])], np.int64)


def check_whole(tokens: Tokens, batch: Int64s) -> None:
    """Each sequence of this call must be one of the batch's, with all its valid tokens."""
    if tokens.number_valid and not len(batch):
        raise ValueError(
            "batch must be made by batch_stats for a loss per sequence to be used for one, got one "
            "that knows no sequences"
        )
    for first, length in whole_sequences(tokens).tolist():
        place = int(np.searchsorted(batch[:, 0], first))
        known = place < len(batch) and int(batch[place, 0]) == first
        if not known or int(batch[place, 1]) != length:
            whole = f"{int(batch[place, 1])} in batch" if known else "which starts none in batch"
            raise ValueError(
                "a loss per sequence needs each sequence whole in one call, got one cut: its first "
                f"token id is {first} with {length} valid tokens here, {whole}"
            )
