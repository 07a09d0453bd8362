"""Slices and casts that change nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logitless.ops.rows.whole import cast, first_rows, flat, part_of

PLACES = st.integers(0, 6)


@given(n=st.integers(0, 5), start=PLACES, stop=PLACES)
def test_part_of_is_the_slice(n: int, start: int, stop: int) -> None:
    x = torch.arange(n)
    assert part_of(x, slice(start, stop)).tolist() == x[start:stop].tolist()


@given(n=st.integers(0, 5), first=PLACES)
def test_first_rows_are_those(n: int, first: int) -> None:
    x = torch.arange(n)
    assert first_rows(x, first).tolist() == x[:first].tolist()


def test_what_is_whole_is_itself() -> None:
    x = torch.arange(6.0)
    assert part_of(x, slice(0, 6)) is x
    assert first_rows(x, 6) is x
    assert cast(x, torch.float32) is x
    assert flat(x) is x


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_cast_and_flat_change_what_differs(dtype: torch.dtype) -> None:
    x = torch.arange(6.0).view(2, 3)
    assert cast(x, dtype).dtype == dtype
    assert flat(x).tolist() == x.reshape(-1).tolist()
