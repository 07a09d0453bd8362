"""The transpose of 16-bit tiles, whose every bit pattern is a number to somebody."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import logitless as ll
from logitless import _core
from logitless.backends import registry


@pytest.mark.parametrize(
    ("n", "width"),
    # whole squares of 32, less than one, one more and one less, columns beyond a task's 64
    [(32, 64), (64, 2048), (1, 1), (1, 70), (70, 1), (31, 33), (33, 31), (205, 2048), (96, 160)],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_element_goes_to_its_place(
    n: int, width: int, dtype: torch.dtype, threads: int
) -> None:
    bits = torch.randint(-(2**15), 2**15, (n, width), dtype=torch.int16)
    out = torch.zeros(width, n, dtype=torch.int16)
    _core.rows.transpose(bits.view(dtype), out.view(dtype), threads)
    assert torch.equal(out, bits.t())


def test_wrong_arrays_are_named() -> None:
    tile = torch.zeros(4, 6, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="tile must be of 16 bits, got float32"):
        _core.rows.transpose(tile.float(), tile)
    with pytest.raises(ValueError, match=r"out must be \[width, n\] where tile is \[n, width\]"):
        _core.rows.transpose(tile, torch.zeros(4, 6, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="out must be bfloat16, got float16"):
        _core.rows.transpose(tile, torch.zeros(6, 4, dtype=torch.float16))
    with pytest.raises(ValueError, match="tile must be contiguous"):
        _core.rows.transpose(tile.t(), tile)


@pytest.mark.parametrize("pays", [False, True])
@pytest.mark.parametrize("n", [40, 300])
def test_turned_products_give_what_plain_ones_do(
    n: int, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever this CPU prefers, both ways stay tested; 40 rows are turned in the forward too."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(n, 48), torch.randn(5003, 48) / 7
    targets = torch.randint(0, 5003, (n,))

    def preferring(dtype: torch.dtype) -> bool:
        return pays and dtype == torch.bfloat16

    changed = replace(registry.get("cpu"), prefers_transposed=preferring)
    monkeypatch.setitem(registry.BACKENDS, "cpu", changed)

    def gradients(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        h, w = (x.to(torch.bfloat16).to(dtype).requires_grad_() for x in (hidden, weight))
        stats = ll.linear_token_stats(h, w, targets, memory_budget="4MiB")
        (stats.logp.mean() - stats.entropy.mean()).backward()
        return h.grad, w.grad

    for got, exact in zip(gradients(torch.bfloat16), gradients(torch.float64), strict=True):
        assert (got - exact).norm() < 0.02 * exact.norm()
