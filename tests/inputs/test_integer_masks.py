"""A mask of integers 0 and 1 is the mask of bools; other integers are refused by place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import logitless as ll
from tests.support import argument_cases as table

MASKED = [name for name, honest in table.FUNCTIONS.items() if "mask" in honest]
KINDS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def leaves(result: Any) -> list[Any]:
    if isinstance(result, dict):
        return [y for x in result.values() for y in leaves(x)]
    if isinstance(result, tuple):
        return [y for x in result for y in leaves(x)]
    return [result]


@pytest.mark.parametrize("numpy", [False, True], ids=["torch", "numpy"])
@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("function", MASKED)
def test_the_same_as_bools(function: str, dtype: torch.dtype, numpy: bool) -> None:
    expected, found = (
        table.honest_call(function, numpy, mask=mask)()
        for mask in (table.whole_mask(), table.whole_mask().to(dtype))
    )
    pairs = list(zip(leaves(expected), leaves(found), strict=True))
    assert pairs
    for a, b in pairs:
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("function", MASKED)
def test_other_integers_are_named(function: str) -> None:
    mask = table.whole_mask().to(torch.int64)
    mask[2] = 7
    with pytest.raises(
        ValueError, match=rf"^{function}: mask must be bool or integers.*7 at \[2\]"
    ):
        table.honest_call(function, mask=mask)()


def test_a_check_and_advantages() -> None:
    batch = dict(table.FUNCTIONS["check"]["batch"], mask=table.whole_mask().to(torch.int32))
    assert ll.check(table.floats(table.V, table.H), batch, rows=2).rows == 2
    x, mask = torch.randn(2, 3), torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert torch.equal(ll.advantages.whiten(x, mask), ll.advantages.whiten(x, mask.bool()))


def test_gradients_under_a_graph_of_torch_compile() -> None:
    """Nobody looks there; every integer but 0 is true."""
    hidden, weight = torch.randn(4, 8), torch.randn(16, 8)

    def f(mask: Any) -> Any:
        return ll.linear_token_stats(hidden, weight, torch.arange(4), mask=mask).logp

    mask = torch.tensor([1, 0, 3, 1])
    torch._dynamo.reset()
    found = torch.compile(f, fullgraph=True, backend="aot_eager")(mask)
    assert torch.equal(found, f(mask != 0))
