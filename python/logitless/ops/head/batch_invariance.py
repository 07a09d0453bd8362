"""Whether products of a fixed shape treat rows alike here: the ground batch_invariant stands on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from logitless.backends.base import Products
from logitless.ops.head.tiling import Tiling

if TYPE_CHECKING:
    from logitless.ops.head.adapter.joined import Matrix


def require_row_independence(tiling: Tiling, weight: Matrix, products: Products) -> None:
    """Raise RuntimeError unless a row's product has the same bits wherever it stands in a tile and
    whatever the other rows hold. Once per device, dtype, shape and number of threads."""
    device, (vocab, hidden) = weight.device, weight.shape
    last = vocab % tiling.columns
    for width in {min(tiling.columns, vocab), last} - {0}:
        # Under autocast or a default device the check would test something else.
        with torch.device(device):
            _check(
                products, device, tiling.operands, tiling.dtype, tiling.fixed, hidden, width,
                torch.get_num_threads(),
            )  # fmt: skip


@functools.lru_cache(maxsize=1024)
def _check(
    products: Products,
    device: torch.device,
    dtype: torch.dtype,
    logits_dtype: torch.dtype,
    rows: int,
    hidden: int,
    width: int,
    threads: int,
) -> None:
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    weight = random(width, hidden)

    def made(x: Tensor, w: Tensor, into: torch.dtype) -> Tensor:
        out = x.new_empty(len(x), w.shape[1], dtype=into)
        products.multiply(x, w, out)
        return out

    def added(x: Tensor, w: Tensor) -> Tensor:
        total = x.new_zeros(len(x), w.shape[1], dtype=logits_dtype)
        products.add(total, x, w, beta=1.0, alpha=1.0)
        return total

    checked: dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]] = {
        "logits": (random(rows, hidden), lambda x: made(x, weight.t(), logits_dtype)),
        "d_hidden": (random(rows, width), lambda x: made(x, weight, dtype)),
        "sum of d_hidden": (random(rows, width), lambda x: added(x, weight)),
    }
    moved = torch.randperm(rows, generator=generator)
    for name, (operand, product) in checked.items():
        expected = product(operand)
        some = torch.zeros_like(operand)
        some[: rows // 3] = operand[moved[: rows // 3]]
        alone = torch.zeros_like(operand)
        alone[-1] = operand[0]
        same = (
            torch.equal(product(operand[moved]), expected[moved])
            and torch.equal(product(some)[: rows // 3], expected[moved[: rows // 3]])
            and torch.equal(product(alone)[-1], expected[0])
        )
        if not same:
            raise RuntimeError(
                f"batch_invariant=True cannot be kept on {device}: in {name}, {list(operand.shape)}"
                f" x {list(weight.shape)} in {dtype} with {threads} threads, a row's result depends"
                " on the other rows or on its place; use batch_invariant=False, another dtype or"
                " logits_dtype, or another number of threads"
            )
