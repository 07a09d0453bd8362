"""What an op knows of its rows, beside their logits: typed arguments, and the `Rows` they make."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from logitless.backends import registry
from logitless.backends.row_kernels.errors import raise_found
from logitless.backends.row_kernels.rows import Rows
from logitless.backends.threads import thread_count
from logitless.inputs.scaling import check_scaling, scale_range
from logitless.ops.rows.row_scale import row_scale
from logitless.ops.rows.whole import cast, flat, part_of

if TYPE_CHECKING:
    from logitless.inputs.options import LogitTransform


class RowArguments(NamedTuple):
    """z = scale * y of a row, with y = softcap * tanh(pre * (raw + bias) / softcap); without a
    softcap y = raw + bias."""

    targets: Tensor  # [N] int64
    mask: Tensor | None  # [N] bool
    bias: Tensor | None  # [V] float32, or float64 for float64 logits
    row_scale: Tensor | None  # [N] float64, in place of `scale`
    scale: float
    pre: float
    softcap: float
    backend: str

    def rows(self, op: str) -> Rows:
        chain = Transform(self.bias, self.row_scale, self.scale, self.pre, self.softcap)
        return kernel_rows(op, self.targets.shape[0], self.targets, self.mask, chain, self.backend)


class RowOutputs(NamedTuple):
    """[n] each, and the statistics as rows of one tensor; extras are empty where none is asked for:
    an output costs 2 us even so."""

    logp: Tensor
    entropy: Tensor
    lse: Tensor
    statistics: Tensor  # [those of inputs/options.py, n]
    argmax: Tensor


# The results with a gradient of an op whose results have a RowOutputs named `outputs`.
DIFFERENTIATED = ("outputs.logp", "outputs.entropy", "outputs.lse")


class RowGradients(NamedTuple):
    """d loss / d of each row's results, [n] float64 or None."""

    logp: Tensor | None
    entropy: Tensor | None
    lse: Tensor | None = None

    @classmethod
    def of(cls, logp: Tensor | None, entropy: Tensor | None, lse: Tensor | None) -> RowGradients:
        """As the kernels take them: expanded ones (from .sum()) become contiguous."""
        return cls(
            *(
                None if g is None else cast(g, torch.float64).contiguous()
                for g in (logp, entropy, lse)
            )
        )

    def nonzero(self, state: Tensor) -> Tensor:  # [n, STATE]
        """[n] bool: the rows that have any gradient at all."""
        some = [gradient for gradient in self if gradient is not None]
        if not some:
            return state.new_zeros(len(state), dtype=torch.bool)
        return reduce(torch.logical_or, some) if len(some) > 1 else some[0].bool()

    def part(self, chunk: slice) -> RowGradients:
        return RowGradients(*(None if g is None else part_of(g, chunk) for g in self))

    def select(self, index: Tensor) -> RowGradients:
        return RowGradients(*(None if g is None else g.index_select(0, index) for g in self))

    def scaled(self, by: float) -> RowGradients:
        return self if by == 1.0 else RowGradients(*(None if g is None else g * by for g in self))

    @property
    def kernel_arguments(self) -> dict[str, Any]:
        return {"g_logp": self.logp, "g_entropy": self.entropy, "g_lse": self.lse}


class Transform(NamedTuple):
    """The part of `RowArguments` between raw logits and z."""

    bias: Tensor | None
    row_scale: Tensor | None
    scale: float
    pre: float
    softcap: float


def kernel_rows(
    op: str,
    n: int,
    given: Tensor,  # targets [N], or another array of the call where there are none
    mask: Tensor | None,  # [N] bool
    chain: Transform,
    name: str,  # of the backend
    *,
    targeted: bool = True,
) -> Rows:
    """The start of every forward and backward: here bad rows of earlier calls surface."""
    backend, per_row = registry.get(name), chain.row_scale
    if backend.asynchronous:
        raise_found(given.device)
        if per_row is not None:
            # The host has not seen these values: a bad one makes NaN of its row.
            low, high = scale_range(chain.pre, chain.softcap)
            good = (low <= per_row) & (per_row <= high)
            per_row = torch.where(good, per_row, float("nan"))
    # torch exports no tensor that requires grad, and a kernel still sees its inputs as such.
    bias = None if chain.bias is None else chain.bias.detach()
    return Rows(
        backend, n, given if targeted else None, mask, per_row, chain.scale, bias, chain.pre,
        chain.softcap, thread_count(given), op,
    )  # fmt: skip


def transform(
    op: str, head: LogitTransform, mask: Tensor | None, wide: bool, *, look: bool
) -> Transform:
    """Without `look` the values of a temperature tensor are not checked, which would wait for a
    device: its kernels flag bad ones."""
    check_scaling(op, head, wide)
    per_row, scale = None, head.numerator
    if isinstance(head.temperature, Tensor):
        per_row = row_scale(op, head, mask, wide, look=look)
    else:
        scale = scale / float(head.temperature)
    bias = head.bias
    if bias is not None:
        bias = bias.to(torch.float64 if wide else torch.float32).contiguous()
    return Transform(bias, per_row, scale, head.pre, head.cap)


def row_arguments(
    op: str, head: LogitTransform, targets: Tensor, mask: Tensor | None, wide: bool, backend: str
) -> RowArguments:
    """Of a public op that has checked the shapes."""
    look = not registry.get(backend).asynchronous
    return RowArguments(
        cast(flat(targets), torch.int64).contiguous(),
        None if mask is None else flat(mask).contiguous(),
        *transform(op, head, mask, wide, look=look),
        backend,
    )
