"""Token kernels whose arrays are tensors: the losses' array functions are torch's, as on a device,
and the kernels are the core's, on the same memory."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logitless.backends.token_kernels.cpu import CPU_TOKENS
from logitless.backends.token_kernels.protocol import (
    SUMS,
    Candidates,
    ExactMeans,
    LossValues,
)
from logitless.backends.token_kernels.torch_arrays import TorchArrays
from logitless.inputs.tokens import Tokens


def there(x: Any) -> Any:
    """NumPy arrays and numbers as tensors; parts of tuples too."""
    if isinstance(x, (np.ndarray, np.generic)):
        return torch.from_numpy(np.array(x))
    if isinstance(x, tuple):
        parts = [there(part) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    return x


def here(x: Any) -> Any:
    """Tensors as NumPy arrays; one without dimensions is a number."""
    if isinstance(x, Tensor):
        array = x.numpy()
        return array if x.ndim else array[()].item()
    if isinstance(x, Tokens):
        values = {f.name: here(getattr(x, f.name)) for f in fields(x) if f.name != "kernels"}
        return Tokens(**values, kernels=CPU_TOKENS)
    if type(x).__name__ == "Sequences":
        return replace(x, lengths=here(x.lengths), xp=CPU_TOKENS.xp)
    if isinstance(x, tuple):
        parts = [here(part) for part in x]
        return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
    return x


class TensorTokens:
    """`TokenKernels` that give no value to the host: numbers are tensors without dimensions."""

    on_host = False
    xp = TorchArrays

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(CPU_TOKENS, name)

        def call(*args: Any, **options: Any) -> Any:
            return there(kernel(*map(here, args), **options))

        return call

    def refuse(self, tokens: Tokens, good: Any, describe: Any) -> None:
        """A device would flag the token."""

    def count(self, tokens: Tokens, which: Any) -> Tensor:
        return torch.from_numpy(np.array(CPU_TOKENS.count(here(tokens), here(which))))

    def exact_means(self, tokens: Tokens, first: Any, second: Any, reduce: Any) -> ExactMeans:
        found = CPU_TOKENS.exact_means(here(tokens), here(first), here(second), reduce)
        assert found.exponents == (0, 0) and found.bad < 0
        numbers = (there(np.array(x)) for x in (found.first, found.second, found.number))
        return ExactMeans(*numbers, (0, 0), -1)

    def take_largest(self, candidates: Candidates, k: Any, reduce: Any) -> Tensor:
        found: Tensor = there(CPU_TOKENS.take_largest(here(candidates), here(k), reduce))
        return found

    def outputs(
        self, metrics: tuple[tuple[int, bool], ...], sums: Tensor, total: Any, *, wide: bool
    ) -> tuple[Tensor, Tensor]:
        number = sums[SUMS.index("tokens")] if total is None else torch.as_tensor(total)
        divisors = number.clamp(min=1)
        values = [sums[i] / divisors if per_token else sums[i] for i, per_token in metrics]
        return sums[0].to(torch.float64 if wide else torch.float32), torch.stack(values).float()

    def params(self, given: dict[str, Any]) -> Any:
        return CPU_TOKENS.params(given)

    def loss(self, tokens: Tokens, params: Any, terms: Any, **wanted: bool) -> LossValues:
        found: LossValues = there(CPU_TOKENS.loss(here(tokens), params, here(terms), **wanted))
        return found
