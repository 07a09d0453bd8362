"""ll.gathered where nothing is sharded; on ranks it is in test_sharded.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import logitless as ll


@pytest.mark.parametrize(
    "weight",
    [
        torch.randn(5, 3),
        torch.nn.Parameter(torch.randn(5, 3)),
        torch.nn.Linear(3, 5).bias,
        torch.empty(0, 3),
        torch.empty(5, 3, device="meta"),
    ],
    ids=["tensor", "parameter", "bias", "empty", "meta"],
)
def test_what_is_plain_is_returned_itself(weight: torch.Tensor) -> None:
    assert ll.gathered(weight) is weight
    assert ll.gathered(weight, reduce="sum") is weight


@pytest.mark.parametrize(
    ("weight", "name"),
    [(torch.nn.Linear(3, 5), "Linear"), (np.zeros((5, 3)), "ndarray"), (None, "NoneType")],
)
def test_what_is_no_tensor_is_named(weight: Any, name: str) -> None:
    with pytest.raises(TypeError, match=f"gathered: weight must be a torch tensor, got .*{name}"):
        ll.gathered(weight)


@pytest.mark.parametrize(
    ("reduce", "error"), [("mean", ValueError), (None, TypeError), (2, TypeError)]
)
def test_other_reductions_are_named(reduce: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"reduce must be one of avg, sum, got {reduce!r}"):
        ll.gathered(torch.randn(5, 3), reduce=reduce)


def test_a_placeholder_of_zero_3_is_refused() -> None:
    """DeepSpeed leaves an empty Parameter with the attributes of the whole, and fills it in where
    it is gathered."""
    weight: Any = torch.nn.Parameter(torch.empty(0))
    weight.ds_id, weight.ds_shape = 3, torch.Size((5, 3))
    message = r"a placeholder of ZeRO-3, \[0\] instead of \[5, 3\].*GatheredParameters"
    with pytest.raises(ValueError, match=f"gathered: weight is {message}"):
        ll.gathered(weight)
    with pytest.raises(ValueError, match=f"linear_token_stats: weight is {message}"):
        ll.linear_token_stats(torch.randn(2, 3), weight, torch.arange(2))
    weight.data = torch.randn(5, 3)
    assert ll.gathered(weight) is weight
    assert ll.linear_token_stats(torch.randn(2, 3), weight, torch.arange(2)).logp.shape == (2,)
