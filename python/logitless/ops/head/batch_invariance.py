"""Whether products of a fixed shape treat rows alike here: the ground batch_invariant stands on."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from logitless.ops.head.tiling import Tiling


def require_row_independence(tiling: Tiling, device: torch.device, hidden: int, vocab: int) -> None:
    """Raise RuntimeError unless a row's product has the same bits wherever it stands in a tile and
    whatever the other rows hold. Once per device, dtype, shape and number of threads."""
    last = vocab % tiling.columns
    for width in {min(tiling.columns, vocab), last} - {0}:
        # Under autocast or a default device the check would test something else.
        with torch.device(device):
            _check(device, tiling.dtype, tiling.fixed, hidden, width, torch.get_num_threads())


@functools.lru_cache(maxsize=1024)
def _check(
    device: torch.device, dtype: torch.dtype, rows: int, hidden: int, width: int, threads: int
) -> None:
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    weight = random(width, hidden)
    totals = torch.zeros(rows, hidden, dtype=dtype)
    products: dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]] = {
        "logits": (random(rows, hidden), lambda x: torch.mm(x, weight.t())),
        "d_hidden": (random(rows, width), lambda x: torch.mm(x, weight)),
        "sum of d_hidden": (random(rows, width), lambda x: torch.addmm(totals, x, weight)),
    }
    moved = torch.randperm(rows, generator=generator)
    for name, (operand, product) in products.items():
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
