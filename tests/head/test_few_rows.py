"""Products of a few rows: no long chain of additions, whichever way they are made.

Libraries multiply a handful of rows by kernels that add up term after term. A chain of as many
terms as the vocabulary has entries, each of them small beside the sum, loses ten times what a tall
product does; so the yardstick is plain torch on 64 rows, of which the others have no gradient.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

import logitless as ll
from logitless.backends import registry
from logitless.ops.head.gemm import CHAIN, FEW_ROWS, GradientSum
from logitless.ops.head.sparse import SparseGradient

N, H, V = 64, 32, 40_000
ACTIVE = (1, 2, 3, 7, 17, 32, N)
# Beside twice plain torch's own error, which is luck too: so much of the gradient's size, in units
# of eps.
FLOOR = 2.0


def problem(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, H, generator=g).to(dtype)
    weight = (torch.randn(V, H, generator=g) / H**0.5 + 0.2).to(dtype)
    # The largest term of a row comes first, and is the one that all others are added to.
    targets = torch.randint(0, 50, (N,), generator=g)
    return hidden, weight, targets, 0.1 * torch.randn(V, generator=g)


def plain(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    logits = hidden @ weight.t()
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(logits + bias, -1).gather(-1, targets[:, None])[:, 0]


def by_stats(**options: Any) -> Callable[..., torch.Tensor]:
    def run(hidden: Any, weight: Any, targets: Any, bias: Any) -> torch.Tensor:
        logp: torch.Tensor = ll.linear_token_stats(
            hidden, weight, targets, bias=bias, **options
        ).logp
        return logp

    return run


WAYS = {
    "kept": by_stats(memory_budget="1GiB"),
    "made again": by_stats(memory_budget="16MiB"),
    "support": by_stats(tail_mass=1e-5),
}


def gradients(
    way: Callable[..., torch.Tensor], n: int, rows: int, dtype: torch.dtype, wide: bool = False
) -> list[torch.Tensor]:
    """d_hidden of the n active rows, d_weight and d_bias, as float64."""
    hidden, weight, targets, bias = problem(dtype)
    if wide:
        hidden, weight, bias = (x.double() for x in (hidden, weight, bias))
    leaves = [x.clone().requires_grad_() for x in (hidden[:rows], weight, bias)]
    (way(leaves[0], leaves[1], targets[:rows], leaves[2])[:n].sum() / n).backward()
    found = [x.grad for x in leaves if x.grad is not None]
    return [found[0][:n].double(), *(x.double() for x in found[1:])]


def error(found: torch.Tensor, truth: torch.Tensor) -> float:
    return ((found - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", ACTIVE)
def test_errors_are_those_of_a_tall_product(n: int, dtype: torch.dtype) -> None:
    truth = gradients(plain, n, N, dtype, wide=True)
    yardstick = gradients(plain, n, N, dtype)
    floor = FLOOR * torch.finfo(dtype).eps
    for name, way in WAYS.items():
        # with many rows that have no gradient, and without others
        for rows in {N, n}:
            found = gradients(way, n, rows, dtype)
            for what, mine, theirs, right in zip(
                ("d_hidden", "d_weight", "d_bias"), found, yardstick, truth, strict=True
            ):
                ours, allowed = error(mine, right), 2 * error(theirs, right) + floor
                assert ours <= allowed, f"{what}, {name}, of {rows} rows: {ours} > {allowed}"


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="MKL's own switch")
def test_kernels_that_add_up_term_after_term() -> None:
    """MKL's plainest kernels do so for up to 7 rows, and the last few of more; which kernels a CPU
    gets by itself is luck."""
    test = f"{__file__}::test_errors_are_those_of_a_tall_product"
    child = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
         *(f"{test}[{n}-torch.float32]" for n in (1, 7))],
        env={**os.environ, "MKL_CBWR": "COMPATIBLE"}, capture_output=True, text=True,
    )  # fmt: skip
    assert child.returncode == 0, child.stdout[-3000:]


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("terms", [1, CHAIN - 1, CHAIN, CHAIN + 1, 7 * CHAIN, 7 * CHAIN + 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sums_of_few_rows(rows: int, terms: int, dtype: torch.dtype) -> None:
    """Whatever the pieces, all terms are in the sum once; strides, alpha and a start included."""
    g = torch.Generator().manual_seed(terms)
    a = torch.randn(rows, terms + 3, generator=g, dtype=dtype)[:, 3:]
    b = torch.randn(terms, 12, generator=g, dtype=dtype)[:, ::2]
    for start in (None, torch.randn(rows, 6, generator=g, dtype=dtype)):
        out = torch.full((rows, 6), torch.nan, dtype=dtype) if start is None else start.clone()
        # two pieces at once
        total = GradientSum(out, started=start is not None, alpha=0.5, at_once=2 * rows * 6)
        right = torch.zeros(rows, 6, dtype=torch.float64) if start is None else start.double()
        for _ in range(2):
            total.add(a, b)
            right = right + 0.5 * (a.double() @ b.double())
        total.finish()
        torch.testing.assert_close(out.double(), right, rtol=1e-5, atol=2e-4)


def test_a_token_that_many_rows_have_kept() -> None:
    """Of the sparse backward: one row of d_weight is then a sum over all of them."""
    n, width = 40_000, 70
    g = torch.Generator().manual_seed(3)
    values, dense = torch.rand(n, generator=g), torch.rand(n, width, generator=g) + 0.5
    dense[0] *= 1e4
    columns, row = torch.arange(n, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    out = torch.zeros(1, width)
    SparseGradient(torch.tensor([0, n]), columns, values, row, registry.get("cpu").sparse).multiply(
        dense, out, add=True
    )
    assert error(out[0].double(), values.double() @ dense.double()) < 5e-7
