"""States of rows over pieces of the vocabulary, merged where they are: torch, on any device.

The same rule as csrc/core/moments.h, which merges on the CPU and is what this is tested against.
"""

from __future__ import annotations

import torch
from torch import Tensor


def merge_states(
    pieces: Tensor,  # [pieces, n, 8] float64, in the order of the columns
    scale: float | Tensor,  # of z, [n] float64 where rows differ
) -> Tensor:
    """[n, 8]: m, s0, s1, s2, q0, q1, y of the target, argmax over all pieces."""
    total = pieces[0]
    for piece in pieces[1:]:
        total = _merged(total, piece, scale)
    return total


def _merged(a: Tensor, b: Tensor, scale: float | Tensor) -> Tensor:
    a_is_larger = (a[:, 0] >= b[:, 0])[:, None]
    big, small = torch.where(a_is_larger, a, b), torch.where(a_is_larger, b, a)
    m = big[:, 0]
    dm = (small[:, 0] - m) * scale
    d = dm.exp()
    _, s0, s1, s2, q0, q1, *_ = small.unbind(1)
    moved = torch.stack(
        (d * s0, d * (s1 + dm * s0), d * (s2 + dm * (2 * s1 + dm * s0)), d * d * q0,
         d * d * (q1 + dm * q0)), 1,
    )  # fmt: skip
    sums = big[:, 1:6] + moved
    # An empty piece is the identity: its m of -inf never enters a sum.
    moments = torch.cat((m[:, None], sums), 1)
    moments = torch.where(b[:, 1:2] == 0, a[:, :6], moments)
    moments = torch.where((a[:, 1:2] == 0) & (b[:, 1:2] != 0), b[:, :6], moments)
    target = torch.where(a[:, 6].isnan(), b[:, 6], a[:, 6])
    argmax = torch.where(b[:, 0] > a[:, 0], b[:, 7], a[:, 7])
    return torch.cat((moments, target[:, None], argmax[:, None]), 1)
