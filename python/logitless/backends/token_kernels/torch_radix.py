"""The k-th largest of many keys on all ranks, in torch's operations: histograms of their digits
that the ranks add, in fixed shapes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from logitless.backends.token_kernels.protocol import Candidates, Reduce
from logitless.backends.token_kernels.torch_numbers import SIGN

# Wider digits than the core's: a fourth of its bins' launches, and fewer tokens add to one bin.
BITS = 16
BINS = 1 << BITS


class Found(NamedTuple):
    """Of each search, [Q]."""

    # words of the k-th largest key
    words: list[Tensor]
    # how many keys are equal to it, and how many of those are among the k largest
    same: Tensor
    needed: Tensor


def search(words: tuple[Tensor, ...], among: Tensor, k: Tensor, reduce: Reduce) -> Found:
    """The k-th largest [Q] of the keys [n] that are `among`, whose 64-bit words these are, the most
    significant first; where there are fewer than k, 0."""
    needed = k
    starting = among.expand(len(k), -1)
    found = []
    for word in words:
        prefix = torch.zeros_like(k)
        for shift in range(64 - BITS, -1, -BITS):
            digit = word >> shift & BINS - 1
            counts = reduce(_histogram(digit, starting)).view(-1, BINS).flip(1)
            from_top = counts.cumsum(1)
            place = (from_top < needed[:, None]).sum(1, keepdim=True).clamp(max=BINS - 1)
            same = counts.gather(1, place)[:, 0]
            needed = needed - (from_top.gather(1, place)[:, 0] - same)
            bin_of_it = BINS - 1 - place
            prefix = prefix | bin_of_it[:, 0] << shift
            starting = starting & (digit == bin_of_it)
        found.append(prefix)
    return Found(found, same, needed)


def _histogram(digit: Tensor, which: Tensor) -> Tensor:
    """[Q * BINS] of digits [n], each time those [Q, n] that count."""
    search = torch.arange(len(which), device=digit.device)[:, None]
    bins = digit.new_zeros(len(which) * BINS)
    return bins.scatter_add_(0, (digit + search * BINS).view(-1), which.long().view(-1))


def taken(candidates: Candidates, k: Tensor, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """Which candidates are among the k [1] largest of all ranks; and which have an id that is
    another's, so that k of them cannot be told."""
    score, key = candidates.scores, ~candidates.ids
    among = candidates.ids >= 0
    found = search((score, key), among, k, reduce)
    least, least_key = found.words
    # as unsigned words
    above = (score ^ SIGN) > (least ^ SIGN)
    equal, reaches = score == least, (key ^ SIGN) >= (least_key ^ SIGN)
    repeated = among & equal & (key == least_key) & (found.same > found.needed)
    return among & (above | (equal & reaches)), repeated
