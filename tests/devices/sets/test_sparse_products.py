"""Products with sparse rows, of which gradients of sets and of kept entries are made; and what the
kernels of gradients do not read."""

from __future__ import annotations

import math

import pytest
import torch

from logitless.backends import registry
from logitless.backends.row_kernels.rows import STATE, Rows
from logitless.backends.row_kernels.topk import CHAIN
from logitless.ops.head.sparse import SparseGradient
from tests.support.device.devices import Device
from tests.support.tolerances import assert_bitwise_equal

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
CPU = Device("cpu", "cpu")


@pytest.mark.parametrize(
    ("of_dense", "of_out"), [(BF16, BF16), (BF16, F32), (F16, F16), (F32, F32)], ids=str
)
def test_products_with_sparse_rows(
    device: Device, of_dense: torch.dtype, of_out: torch.dtype
) -> None:
    """Both ways, with a token that more rows have kept than go into one chain of additions, and
    with columns that are a part of a row. Twice, to the bit."""
    generator = torch.Generator().manual_seed(3)
    # of Triton's interpreter each row of the second product takes milliseconds; and of its kernel
    # these are several tiles of columns
    n, width = (60, 1100) if device.interpreted else (CHAIN + 300, 40)
    vocab = 37
    few = torch.randint(0, 4, (n,), generator=generator)
    offsets = torch.cat([few.new_zeros(1), (few + 1).cumsum(0)])
    columns = torch.randint(0, vocab, (int(offsets[-1]),), generator=generator, dtype=torch.int32)
    columns[offsets[:-1]] = 5
    values = torch.randn(len(columns), generator=generator)
    dense = torch.randn(n, width + 8, generator=generator).to(of_dense)
    before, names = torch.randn(vocab, width + 8, generator=generator).to(of_out), torch.arange(n)

    def run(where: Device) -> tuple[torch.Tensor, ...]:
        there = [x.to(where.name) for x in (offsets, columns, values, names.int())]
        kernels = registry.get(where.backend).sparse
        assert kernels is not None
        matrix = SparseGradient(*there, kernels)
        transposed = matrix.transposed(vocab, names.to(where.name))
        d_weight, weight = before.to(where.name, copy=True), before.to(where.name, of_dense)
        transposed.multiply(dense.to(where.name)[:, 4:-4], d_weight[:, 4:-4], add=True)
        d_hidden = dense.to(where.name, of_out, copy=True)
        matrix.multiply(weight[:, 3:-1], d_hidden[:, 3:-1], add=False)
        return d_weight.cpu(), d_hidden.cpu()

    ours, again, right = run(device), run(device), run(CPU)
    for a, b, c in zip(ours, again, right, strict=True):
        assert_bitwise_equal(a, b)
        rtol = {BF16: 2**-7, F16: 2**-10, F32: 2e-6}[a.dtype]
        torch.testing.assert_close(a.float(), c.float(), rtol=rtol, atol=1e-4)
    assert_bitwise_equal(ours[0][:, :4], before[:, :4])


def test_of_an_entry_that_is_0_the_row_is_not_read(device: Device) -> None:
    kernels = registry.get(device.backend).sparse
    assert kernels is not None
    dense, out = torch.ones(3, 5), torch.full((2, 5), math.nan)
    dense[1] = math.nan
    csr = torch.tensor([0, 3, 3]), torch.tensor([0, 1, 2]).int(), torch.tensor([2.0, 0.0, 0.5])
    arrays = device.put(*csr, torch.tensor([1, 0]).int(), dense, out)
    SparseGradient(*arrays[:4], kernels).multiply(arrays[4], arrays[5], add=False)
    assert arrays[5].tolist() == [[0.0] * 5, [2.5] * 5]


def test_rows_without_a_gradient_are_not_read(device: Device) -> None:
    """Nor their states, alone and beside a teacher's."""
    backend = registry.get(device.backend)
    assert backend.sets is not None
    n, nan = 2, math.nan
    values, state = torch.tensor([nan, 1.0, 2.0, 0.0, 0.5]), torch.zeros(n, STATE).double()
    state[0] = nan
    state[1, 1] = state[1, 5] = 1.0
    arrays = torch.tensor([0, 2, 4]), torch.tensor([0, 1, 1, 4, 7]).int(), values, state
    offsets, columns, values, state = device.put(*arrays)
    g = torch.tensor([0.0, 1.0], dtype=torch.float64, device=device.name)
    for softcap in (0.0, 5.0):
        targets = torch.ones(n, dtype=torch.int64, device=device.name)
        rows = Rows(backend, n, targets, softcap=softcap)
        out = torch.full_like(values, 7.0)
        backend.sets.gradient(
            rows, offsets, columns, values, state=state, gradient=out, g_logp=g, g_entropy=g * 0,
            g_lse=None,
        )  # fmt: skip
        check_gradient(out)
        rows = Rows(backend, n, softcap=softcap)
        for kind in ("reverse_kl", "forward_kl", "jsd"):
            out.fill_(7.0)
            sums = state.new_zeros(n, 2) if kind == "jsd" else None
            backend.sets.pair_gradient(
                rows, rows, offsets, columns, values, values, state=state, out=out, kind=kind,
                beta=0.5, sums=sums, g_divergence=g, g_entropy=None,
            )  # fmt: skip
            check_gradient(out)


def check_gradient(out: torch.Tensor) -> None:
    """Zeros of the first row, numbers of the second; what is no row's is left."""
    assert out[:2].tolist() == [0.0, 0.0] and out[4] == 7.0
    assert out[2:4].isfinite().all() and (out[2:4] != 7.0).all()
