"""Large buffers on the CPU that one call lets go of and the next one finds again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from logitless import _core

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Below, memory comes from torch: its pages are mostly there already.
SMALLEST = 8 << 20


def is_plain(tensor: Tensor) -> bool:
    """Whether it is memory and nothing else: no fake tensor or other subclass, as in tracing."""
    import torch

    return type(tensor) in (torch.Tensor, torch.nn.Parameter)


def buffer(size: int, dtype: torch.dtype, like: Tensor) -> Tensor:
    """Memory for `size` elements where `like` is; what it holds is undefined.

    On the CPU a large one comes from memory that an earlier tensor of this function has left, whose
    pages are there: csrc/cpu/runtime/memory.h says what that saves and what is kept.
    """
    import torch

    nbytes = size * dtype.itemsize
    if not is_plain(like) or like.device.type != "cpu" or nbytes < SMALLEST:
        return like.new_empty(size, dtype=dtype)
    # a buffer to Python, which mypy cannot know of
    memory: Any = _core.runtime.Memory(nbytes)
    return torch.frombuffer(memory, dtype=dtype, count=size)


def buffer_like(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Memory of the shape of `tensor`, dense in its order of strides."""
    import torch

    dtype = tensor.dtype if dtype is None else dtype
    size = tensor.numel()
    # small ones 5 us faster
    if not tensor.is_contiguous() or size * dtype.itemsize < SMALLEST:
        return torch.empty_like(tensor, dtype=dtype)
    return buffer(size, dtype, tensor).view(tensor.shape)


def contiguous_like(tensor: Tensor) -> Tensor:
    """Memory of the shape of `tensor`, whatever its strides."""
    import torch

    if tensor.nbytes < SMALLEST:
        # 4 us faster
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)
    return buffer(tensor.numel(), tensor.dtype, tensor).view(tensor.shape)


def release_memory() -> int:
    """Hand the memory that waits for the next call back to the system; how many bytes it was.

    On the CPU, kept logits and the gradients of heads and of given logits live in memory that is
    used again from call to call, in at most four blocks beside those in use; pages that wait are
    the system's to take when it runs short. Nothing in use, a view or an array over a gradient
    included, is touched, and nothing has to call this.
    """
    return _core.runtime.release_memory()
