"""Whether a gradient may be written over the logits that it belongs to: `inplace_backward`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from logitless.backends.memory import is_plain


def check_overwritable(op: str, logits: Tensor, bias: Tensor | None) -> None:
    """ValueError where a gradient over `logits` would be wrong, or would destroy what must stay.

    Of tensors that other autograd nodes have saved the forward cannot know: the backward counts up
    the version of what it writes to, and torch raises where somebody still needs it.
    """
    if torch.compiler.is_compiling() or not is_plain(logits):
        return  # their backwards write over nothing, see row_op.py
    owner = logits if logits._base is None else logits._base
    start = f"{op}: inplace_backward=True writes the gradient into the memory of logits, "
    if isinstance(owner, torch.nn.Parameter):
        raise ValueError(start + "here that of a parameter, whose values would be lost")
    # The next gradient would be added to the last one where it lies, after it was written there.
    if owner.is_leaf and owner.grad is not None and owner.grad.data_ptr() == owner.data_ptr():
        raise ValueError(
            start + "where .grad still holds that of an earlier call: set .grad to None, and fill "
            "the logits anew"
        )
    if bias is not None and _storage(bias) == _storage(logits):
        raise ValueError(start + "of which bias is a view: pass bias.clone()")
    if overlapping(logits.shape, logits.stride()):
        raise ValueError(
            start + "whose entries must not share places there, got shape "
            f"{list(logits.shape)} with strides {list(logits.stride())}: pass logits.clone()"
        )


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def overlapping(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether two entries share a place in memory; entries of a row are neighbours."""
    if 0 in shape:
        return False
    reach, nested = 1, True
    for step, n in sorted((step, n) for n, step in zip(shape, strides, strict=True) if n > 1):
        nested = nested and step >= reach
        reach += step * (n - 1)
    if nested:
        return False
    # Rows that interleave need not meet: where they start tells.
    starts = torch.zeros(1, dtype=torch.int64)
    for n, step in zip(shape[:-1], strides[:-1], strict=True):
        starts = (starts[:, None] + torch.arange(n) * step).view(-1)
    return bool((starts.sort().values.diff() < shape[-1]).any())


def saved_as_given() -> bool:
    """Whether a backward finds the very tensors that its forward saves now.

    Hooks for saved tensors (checkpointing, offloading) hand out others, the same one to several
    nodes perhaps, and torch does not look at versions there. False where torch, of which this is no
    public function, does not say.
    """
    ask = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return ask is not None and ask(True) is None
