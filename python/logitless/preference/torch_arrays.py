"""The array functions of `NumpyPairs` for torch tensors: nothing in them waits for a device."""

from __future__ import annotations

import torch
from torch import Tensor

from logitless.advantages.torch_arrays import TorchGroups


class TorchPairs(TorchGroups):
    log_sigmoid = staticmethod(torch.nn.functional.logsigmoid)

    @staticmethod
    def log_softmax(x: Tensor) -> Tensor:
        return x.log_softmax(-1)

    @staticmethod
    def least(x: Tensor) -> Tensor:
        return x.amin(dim=0)

    @staticmethod
    def data(x: Tensor) -> Tensor:
        return x.detach()
