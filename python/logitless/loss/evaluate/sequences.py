"""Values of tokens and of the sequences that they belong to."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from logitless.backends.token_kernels.protocol import TokenKernels
from logitless.inputs.tokens import Bools, Float64s, Floats, Int64s, Tokens


def kernels_of(tokens: Tokens) -> TokenKernels:
    kernels: TokenKernels = tokens.kernels
    return kernels


def refuse(tokens: Tokens, good: Bools, describe: Callable[[int], str]) -> None:
    """ValueError for the first token that is not good; on a device it is flagged."""
    kernels_of(tokens).refuse(tokens, good, describe)


def valid(tokens: Tokens, values: Floats) -> Float64s:
    """float64, 0 outside the mask."""
    xp = tokens.xp
    return xp.cast(xp.where(tokens.mask, values, 0.0), xp.float64)


def log_ratio_of(tokens: Tokens, above: str, below: str) -> Float64s:
    """The difference of two log-probs of `tokens` by name, float64, 0 outside the mask. Inside it
    both must be finite: a sum over a sequence would lose the place of one that is not."""
    xp, a, b = tokens.xp, getattr(tokens, above), getattr(tokens, below)
    ratio = valid(tokens, xp.difference(a, b))
    refuse(
        tokens,
        xp.isfinite(ratio),
        lambda i: (
            f"{above} and {below} must be finite where the mask is true, got {a[i]} and {b[i]} at "
            f"{tokens.place(i)}"
        ),
    )
    return ratio


def sequence_means(tokens: Tokens, values: Float64s) -> Float64s:
    """The mean over each sequence's valid tokens, [B]; 0 where it has none."""
    kernels = kernels_of(tokens)
    return kernels.sums(tokens, values) / tokens.xp.maximum(kernels.lengths(tokens), 1)


def per_token(tokens: Tokens, of_sequences: Float64s) -> Float64s:
    """Of each token the value of its sequence, [N]."""
    return of_sequences[tokens.require_sequences().of_token]


def whole_sequences(tokens: Tokens) -> Int64s:
    """[S, 2], sorted: the smallest id and the number of valid tokens of each sequence that has any.
    On a device also of the others, at the end: 2^63 - 1 and 0."""
    kernels = kernels_of(tokens)
    table = tokens.xp.columns(kernels.first_ids(tokens), kernels.lengths(tokens))
    if kernels.on_host:
        table = table[table[:, 1] > 0]
    return table[table[:, 0].argsort()]


def check_whole(tokens: Tokens, batch: Int64s) -> None:
    """Each sequence of this call must be one of the batch's, with all its valid tokens."""
    if not tokens.kernels.on_host:
        _flag_cut(tokens, batch)
        return
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


def _flag_cut(tokens: Tokens, batch: Int64s) -> None:
    """The first token of a sequence that is not is flagged."""
    kernels = kernels_of(tokens)
    lengths = kernels.lengths(tokens)
    whole = lengths == 0
    if len(batch):
        first, known = kernels.first_ids(tokens), batch[:, 0].contiguous()
        place = tokens.xp.search(known, first)
        whole = whole | ((known[place] == first) & (batch[:, 1][place] == lengths))
    refuse(tokens, per_token(tokens, whole) | ~tokens.mask, lambda _: "")
