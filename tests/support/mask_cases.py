"""Sets of tokens that the tests share, each kind with its reason."""

from __future__ import annotations

import numpy as np
import torch

import logitless as ll

KINDS = (
    "few",  # 1 to 9 ids
    "target",  # the target alone: logp = 0 and H = 0
    "all",  # every id
    "mixed",  # rows with a set beside rows without
    "borders",  # around the ends of blocks of 2048 columns, where tiles end too
    "large",  # more than a block, in no order
    "none",  # no row has a set
)


def sets(kind: str, seed: int, targets: torch.Tensor, vocab: int) -> list[list[int]]:
    """A list of ids for each target, in no order."""
    rng = np.random.default_rng(seed)
    borders = [b + d for b in range(0, vocab + 2048, 2048) for d in (-1, 0, 1)]
    found = []
    for i, target in enumerate(targets.flatten().tolist()):
        n = {"few": 1 + i % 9, "mixed": (i % 3) * 4, "large": vocab // 2}.get(kind, 0)
        ids = {int(x) for x in rng.permutation(vocab)[:n]}
        if kind == "all":
            ids = set(range(vocab))
        elif kind == "borders":
            ids = {b for b in borders if 0 <= b < vocab}
        if kind == "none" or (kind == "mixed" and not n):
            found.append([])
            continue
        found.append([int(x) for x in rng.permutation(sorted(ids | {target}))])
    return found


def mask_of(kind: str, seed: int, targets: torch.Tensor, vocab: int) -> ll.SamplingMask:
    return ll.SamplingMask.from_lists(sets(kind, seed, targets, vocab))
