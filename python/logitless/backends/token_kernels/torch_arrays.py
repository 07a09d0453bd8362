"""The array functions of `NumpyArrays` for torch tensors: nothing in them waits for a device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logitless.backends.token_kernels.arrays import NumpyArrays


class TorchArrays:
    float32, float64, int64, int32 = torch.float32, torch.float64, torch.int64, torch.int32
    isfinite = staticmethod(torch.isfinite)

    @staticmethod
    def array(name: str, x: Tensor) -> Tensor:
        narrow = x.is_floating_point() and x.element_size() < 4
        return x.detach().float() if narrow else x.detach()

    @staticmethod
    def truths(mask: Tensor) -> Tensor:
        """Each kernel takes every byte but 0 for true."""
        return mask

    @staticmethod
    def kind(dtype: torch.dtype) -> str:
        return "f" if dtype.is_floating_point else "b" if dtype == torch.bool else "i"

    @staticmethod
    def flat(x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype).contiguous().view(-1)

    @staticmethod
    def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype)

    @staticmethod
    def difference(a: Tensor, b: Tensor) -> Tensor:
        return a.double() - b

    @staticmethod
    def divided(x: Any, y: Any) -> Any:
        """Torch would multiply by a reciprocal where one of the two is a number: everywhere if that
        is x, on a GPU if it is y."""
        if isinstance(x, Tensor) and not isinstance(y, Tensor):
            y = x.new_full((), y, dtype=torch.float64)
        elif isinstance(y, Tensor) and not isinstance(x, Tensor):
            x = y.new_full((), x, dtype=torch.float64)
        return x / y

    @staticmethod
    def where(condition: Tensor, a: Any, b: Any) -> Tensor:
        if not isinstance(a, Tensor) and not isinstance(b, Tensor):
            a = condition.new_full((), a, dtype=torch.float64)
        return torch.where(condition, a, b)

    @staticmethod
    def clip(x: Tensor, low: float, high: float) -> Tensor:
        return x.clamp(low, high)

    @staticmethod
    def maximum(x: Tensor, y: Any) -> Tensor:
        return torch.maximum(x, y) if isinstance(y, Tensor) else x.clamp(min=y)

    @staticmethod
    def minimum(x: Tensor, y: Any) -> Tensor:
        return torch.minimum(x, y) if isinstance(y, Tensor) else x.clamp(max=y)

    @staticmethod
    def arange(n: int, like: Tensor) -> Tensor:
        return torch.arange(n, device=like.device)

    @staticmethod
    def repeat(values: Tensor, counts: Tensor, total: int) -> Tensor:
        return torch.repeat_interleave(values, counts, output_size=total)

    @staticmethod
    def zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
        return like.new_zeros(shape, dtype=torch.float64)

    @staticmethod
    def sort(x: Tensor) -> Tensor:
        return x.sort().values

    @staticmethod
    def full(like: Tensor, value: float) -> Tensor:
        return like.new_full((len(like),), value, dtype=torch.float64)

    @staticmethod
    def true(like: Tensor) -> Tensor:
        return like.new_ones(len(like), dtype=torch.bool)

    @staticmethod
    def lengths(rows: int, width: int, like: Tensor) -> Tensor:
        return like.new_full((rows,), width, dtype=torch.int64)

    @staticmethod
    def vector(values: tuple[Any, ...], like: Tensor) -> Tensor:
        hosts = {value for value in values if not isinstance(value, Tensor)}
        # a fill for each of the few that differ
        known = {value: like.new_full((), value, dtype=torch.float64) for value in hosts}
        return torch.stack([
            value.to(like.device, torch.float64) if isinstance(value, Tensor) else known[value]
            for value in values
        ])  # fmt: skip

    @staticmethod
    def join(*parts: Tensor) -> Tensor:
        return torch.cat(parts)

    @staticmethod
    def search(ordered: Tensor, values: Tensor) -> Tensor:
        """Where each of them stands, if it is there."""
        return torch.searchsorted(ordered, values).clamp(max=len(ordered) - 1)

    @staticmethod
    def columns(*parts: Tensor) -> Tensor:
        return torch.stack(parts, dim=1)

    @staticmethod
    def inverse(count: Any) -> Any:
        if isinstance(count, int):
            return NumpyArrays.inverse(count)
        return 1.0 / count.double().clip(min=1)

    @staticmethod
    def part(fraction: float, count: Any) -> Any:
        if isinstance(count, int):
            return NumpyArrays.part(fraction, count)
        return (fraction * count.double()).long().clip(min=1)

    @staticmethod
    def numbers(x: Tensor) -> tuple[Tensor, ...]:
        return x.unbind()
