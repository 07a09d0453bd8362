"""Temperatures of rows as the kernels take them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from logitless.inputs.scaling import check_temperatures
from logitless.ops.torch_op import register

if TYPE_CHECKING:
    from logitless.inputs.options import LogitTransform


def row_scale(
    op: str, head: LogitTransform, mask: Tensor | None, wide: bool, *, look: bool
) -> Tensor:  # [N] float64
    """The scale of every row. With `look` temperatures are checked where the mask is true."""
    temperature = head.temperature.detach()
    if not look:
        return _scaled(temperature, head.numerator)
    arguments = (temperature, mask, head.numerator, op, head.logit_scale, head.softcap, wide)
    if torch.compiler.is_compiling():
        scale: Tensor = _checked_op(*arguments)
        return scale
    return _checked(*arguments)


def _checked(
    temperature: Tensor,
    mask: Tensor | None,
    numerator: float,
    op: str,
    logit_scale: float,
    softcap: float | None,
    wide: bool,
) -> Tensor:
    flat_mask = None if mask is None else mask.reshape(-1)
    values = temperature.reshape(-1).to(torch.float64)
    check_temperatures(op, values, flat_mask, logit_scale, softcap, wide)
    return numerator / values


def _scaled(temperature: Tensor, numerator: float) -> Tensor:
    return numerator / temperature.reshape(-1).to(torch.float64)


# A graph cannot look at numbers of its own.
_checked_op = register(
    "row_scale",
    _checked,
    lambda temperature, *_: temperature.new_empty(temperature.numel(), dtype=torch.float64),
)
