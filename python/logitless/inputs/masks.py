"""Masks as a caller has them: bool, or integers 0 and 1."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from logitless.inputs.checks import is_tensor
from logitless.inputs.gradients import is_traced


def as_mask(mask: Any) -> Any:
    """bool of integers 0 and 1; what is neither is left for the checks of the op. On a device, and
    in a graph of torch.compile, nobody looks: every integer but 0 is true."""
    if is_tensor(mask):
        torch: Any = sys.modules["torch"]
        if mask.dtype is torch.bool or not _integers(mask, torch):
            return mask
        if type(mask) is torch.Tensor and mask.is_cpu and not is_traced(mask):
            _check(mask.numpy())
        return mask != 0
    if isinstance(mask, np.ndarray) and mask.dtype.kind in "iu":
        _check(mask)
        return mask != 0
    return mask


def _integers(mask: Any, torch: Any) -> bool:
    """Whether they are plain integers, which have values."""
    dtype = mask.dtype
    plain = not mask.is_nested and mask.layout is torch.strided and mask.device.type != "meta"
    return plain and not (dtype.is_floating_point or dtype.is_complex or mask.is_quantized)


def _check(values: Any) -> None:
    wrong = (values != 0) & (values != 1)
    if wrong.any():
        place = [int(i) for i in np.argwhere(wrong)[0]]
        raise ValueError(
            f"mask must be bool or integers 0 and 1, got {values[tuple(place)]} at {place}"
        )
