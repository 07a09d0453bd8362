"""States of rows under two softmaxes over pieces of the vocabulary, merged where they are.

The same rule as csrc/core/divergence.h, which merges on the CPU and is what this is tested against.
"""

from __future__ import annotations

import torch
from torch import Tensor

# [n, 4] of a side: the largest y, sum e^x, sum x e^x, sum e^x (x - the other's x).
SIDE = 4


def merge_pair_states(
    pieces: Tensor,  # [pieces, n, 8] float64, in the order of the columns
    scale: float | Tensor,  # of the student's z, [n] float64 where rows differ
    teacher_scale: float | Tensor,
) -> Tensor:
    """[n, 8]: the student's side and the teacher's, over all pieces."""
    sides = pieces[..., :SIDE], pieces[..., SIDE:]
    maxima = [side[..., 0].amax(0) for side in sides]
    shifts = [
        # of a piece without any mass there is none to shift by
        torch.where(side[..., 1] == 0, 0.0, (side[..., 0] - m) * by)
        for side, m, by in zip(sides, maxima, (scale, teacher_scale), strict=True)
    ]
    merged = [
        torch.cat((m[:, None], _shifted(side, own, own - other).sum(0)), 1)
        for side, m, own, other in zip(sides, maxima, shifts, shifts[::-1], strict=True)
    ]
    return torch.cat(merged, 1)


def _shifted(side: Tensor, own: Tensor, apart: Tensor) -> Tensor:  # [pieces, n, 3]
    d, (_, s0, s1, gap) = own.exp(), side.unbind(-1)
    mass = d * s0
    # by choice: a gap of inf may have no mass left
    gaps = torch.where(mass != 0, d * (gap + apart * s0), 0.0)
    return torch.stack((mass, d * (s1 + own * s0), gaps), -1)
