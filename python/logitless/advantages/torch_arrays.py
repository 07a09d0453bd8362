"""The array functions of `NumpyGroups` for torch tensors: nothing in them waits for a device.

A sum over a group on a GPU adds in no fixed order, unless torch.use_deterministic_algorithms(True)
says so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from logitless.backends.token_kernels.torch_arrays import TorchArrays


class TorchGroups(TorchArrays):
    exp = staticmethod(torch.exp)

    @staticmethod
    def row_max(x: Tensor) -> Tensor:
        return x.amax(dim=1, keepdim=True)

    @staticmethod
    def first(which: Tensor) -> Tensor:
        return which.nonzero()[0]

    @staticmethod
    def numbered(given: Tensor) -> Tensor:
        # torch.unique would have to tell the host how many there are
        ordered, places = given.sort(stable=True)
        starts = torch.zeros_like(places)
        starts[1:] = ordered[1:] != ordered[:-1]
        return torch.zeros_like(places).scatter_(0, places, starts.cumsum(0))

    @staticmethod
    def sums(values: Tensor, ids: Tensor, number: int) -> Tensor:
        return values.new_zeros(number).index_add_(0, ids, values)

    @staticmethod
    def largest(values: Tensor, ids: Tensor, number: int) -> Tensor:
        none = values.new_full((number,), float("-inf"))
        return none.scatter_reduce_(0, ids, values, "amax")

    @staticmethod
    def order(values: Tensor, ids: Tensor) -> Tensor:
        by_value = values.argsort(stable=True)
        return by_value[ids[by_value].argsort(stable=True)]

    @staticmethod
    def later(x: Tensor, by: int) -> Tensor:
        return torch.cat([x[:, by:], torch.zeros_like(x[:, :by])], dim=1)
