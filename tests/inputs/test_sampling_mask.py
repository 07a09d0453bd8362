"""ll.SamplingMask: the forms that it comes in, and what it refuses."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import logitless as ll

LISTS = [[5, 2], [], [7], [0, 1, 2]]
IDS, OFFSETS = [5, 2, 7, 0, 1, 2], [0, 2, 2, 3, 6]


@pytest.mark.parametrize("array", [torch.tensor, np.array])
@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_all_forms_are_one(array: Any, dtype: str) -> None:
    kind = getattr(torch if array is torch.tensor else np, dtype)
    padded = array([[5, 2, -1], [-1, -1, -1], [-1, 7, -1], [0, 1, 2]], dtype=kind)
    for mask in (
        ll.SamplingMask(array(IDS, dtype=kind), array(OFFSETS, dtype=kind)),
        ll.SamplingMask.from_lists(LISTS),
        ll.SamplingMask.from_padded(padded),
        ll.SamplingMask.from_padded(padded.reshape(2, 2, 3)),
    ):
        assert mask.lists() == LISTS
        assert len(mask) == 4


def test_some_rows() -> None:
    mask = ll.SamplingMask.from_lists(LISTS)
    index: Any
    for index in ([3, 1], np.array([3, 1]), torch.tensor([3, 1])):
        assert mask.rows(index).lists() == [LISTS[3], LISTS[1]]
    assert mask.rows([False, True, False, True]).lists() == [LISTS[1], LISTS[3]]
    assert mask.rows([]).lists() == []
    for index in ([4], [True] * 3, [0.5]):
        with pytest.raises(IndexError, match=r"^index must name rows of 4 rows: "):
            mask.rows(index)


def test_nothing() -> None:
    padded = ll.SamplingMask.from_padded(np.zeros((0, 3), int))
    for mask in (ll.SamplingMask.from_lists([]), padded):
        assert len(mask) == 0
        assert mask.lists() == []
    assert ll.SamplingMask.from_lists([[], []]).lists() == [[], []]


@given(st.lists(st.lists(st.integers(0, 30), unique=True, max_size=9), max_size=9), st.data())
def test_the_rows_of_a_call(lists: list[list[int]], data: st.DataObject) -> None:
    """Ids come back sorted, of the active rows that have any; of a part of the vocabulary from its
    start on."""
    n = len(lists)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool)
    targets = np.array([x[0] if x else 0 for x in lists], np.int64)
    found = ll.SamplingMask.from_lists(lists).sets(targets, mask, 31)
    assert found.places.tolist() == [i for i, x in enumerate(lists) if x and mask[i]]
    start, stop = sorted(data.draw(st.tuples(st.integers(0, 31), st.integers(0, 31))))
    part = found.within(start, stop)
    for number, place in enumerate(found.places):
        row = sorted(lists[place])
        assert found.ids[found.offsets[number] : found.offsets[number + 1]].tolist() == row
        own = part.ids[part.offsets[number] : part.offsets[number + 1]].tolist()
        assert own == [x - start for x in row if start <= x < stop]


@pytest.mark.parametrize(
    ("ids", "offsets", "words"),
    [
        (IDS, [0, 3, 2, 6], "offsets must not fall, got 2 after 3 at row 1"),
        (IDS, [0, 3, 5], "offsets must end at the number of token_ids, 6, got 5"),
        (IDS, [0, 3, 7], "offsets must end at the number of token_ids, 6, got 7"),
        (IDS, [1, 6], "offsets must start at 0, got 1"),
        (IDS, [], "offsets must start at 0, got no element"),
        ([IDS], OFFSETS, "token_ids must be a vector, got"),
    ],
)
def test_what_is_no_csr(ids: Any, offsets: Any, words: str) -> None:
    for array in (torch.tensor, np.array):
        whole = array([0]).dtype
        csr = [array(x, dtype=whole) for x in (ids, offsets)]
        with pytest.raises(ValueError, match=words):
            ll.SamplingMask(*csr)


def test_what_is_no_array() -> None:
    good = torch.tensor([0])
    for bad in ([0], None, 1, torch.tensor([0.0]), np.array([True]), good.to("meta"), "ids"):
        for pair in ((bad, good), (good, bad)):
            with pytest.raises(TypeError, match="must be"):
                ll.SamplingMask(*pair)
    with pytest.raises(TypeError, match="both torch or both NumPy"):
        ll.SamplingMask(good, np.array([0]))
    for no_list in ([[2]], 3, None, "7"):
        with pytest.raises(ValueError, match="lists must hold a list of ids for row 1"):
            ll.SamplingMask.from_lists([[1], no_list])  # type: ignore[list-item]
    no_ids: tuple[Any, ...] = ([1.7, 2], ["7"], [True], [2**70], [2**63], [None], torch.ones(1))
    for row in no_ids:
        with pytest.raises(TypeError, match="lists must hold ids, whole numbers in int64, for row"):
            ll.SamplingMask.from_lists([[1], row])
    for lists in (None, 3):
        with pytest.raises(TypeError, match="lists must be a list of ids for each row, got"):
            ll.SamplingMask.from_lists(lists)  # type: ignore[arg-type]
    for flat in (torch.tensor([1, 2]), [[1, 2]]):
        with pytest.raises(TypeError, match="ids must be an array"):
            ll.SamplingMask.from_padded(flat)


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_what_was_checked_stays(dtype: Any) -> None:
    """Whatever becomes of the arrays."""
    ids, offsets = np.array(IDS, dtype), np.array(OFFSETS, dtype)
    before = ll.SamplingMask(ids.copy(), offsets.copy()).lists()
    for array in (lambda x: x, torch.from_numpy):
        mask = ll.SamplingMask(array(ids), array(offsets))
        ids[0], offsets[1] = ids[0] + 1, 0
        assert mask.lists() == before
        ids[0], offsets[1] = ids[0] - 1, OFFSETS[1]


def call(lists: Any, targets: Any = (5, 0, 7, 1), **options: Any) -> Any:
    mask = lists if isinstance(lists, ll.SamplingMask) else ll.SamplingMask.from_lists(lists)
    options = {"sampling_mask": mask, **options}
    return ll.token_stats(torch.zeros(4, 9), torch.tensor(targets), **options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({1: [3, 9]}, "row 1: sampling_mask has token 9, outside [0, 9)"),
        ({1: [3, -1]}, "row 1: sampling_mask has token -1, outside [0, 9)"),
        ({3: [1, 0, 1]}, "row 3: sampling_mask has token 1 twice"),
        ({0: [2, 4]}, "row 0: target 5 is outside its sampling_mask of 2 ids"),
    ],
)
def test_rows_are_named(change: dict[int, list[int]], words: str) -> None:
    lists = [change.get(i, row) for i, row in enumerate(LISTS)]
    with pytest.raises(ValueError, match=f"^{re.escape(f'token_stats: {words}')}$"):
        call(lists)
    # Nobody looks at rows outside the mask.
    mask = torch.tensor([i not in change for i in range(4)])
    assert call(lists, mask=mask).logp.shape == (4,)


def test_what_a_call_refuses() -> None:
    for target in (9, -1):
        with pytest.raises(ValueError, match=rf"row 2: target {target} is outside \[0, 9\)"):
            call(LISTS, (5, 0, target, 1))
    with pytest.raises(ValueError, match="must have a row for each of 4 tokens, got 3"):
        call(LISTS[:3])
    with pytest.raises(TypeError, match="sampling_mask must be a SamplingMask or None, got"):
        call(LISTS, sampling_mask=LISTS)
    with pytest.raises(ValueError, match="extras: 'kept_mass' needs a sampling_mask"):
        call(LISTS, sampling_mask=None, extras=("kept_mass",))
    with pytest.raises(NotImplementedError, match="inplace_backward with a sampling_mask"):
        call(LISTS, inplace_backward=True)
    h, w, t = torch.zeros(4, 3), torch.zeros(9, 3), torch.tensor([5, 0, 7, 1])
    mask = ll.SamplingMask.from_lists(LISTS)
    with pytest.raises(NotImplementedError, match="linear_token_stats: tail_mass with a sampling"):
        ll.linear_token_stats(h, w, t, sampling_mask=mask, tail_mass=0.1)
    with pytest.raises(ValueError, match="weight_grad='rows' needs a sampling_mask, got None"):
        ll.linear_token_stats(h, w, t, weight_grad="rows")
    made = (w + 0).requires_grad_() * 2
    with pytest.raises(ValueError, match=r"needs a weight that no op has made.*MulBackward"):
        ll.linear_token_stats(h, made, t, sampling_mask=mask, weight_grad="rows")
    arrays = [x.numpy() for x in (h, w, t)]
    rows = {"sampling_mask": mask, "weight_grad": "rows", "backend": "torch"}
    with pytest.raises(NotImplementedError, match="weight_grad is not built for backend 'torch'"):
        ll.linear_token_stats(h, w, t, **rows)
    with pytest.raises(ValueError, match="weight_grad must be left at 'dense' for NumPy inputs"):
        ll.linear_token_stats(*arrays, sampling_mask=mask, weight_grad="rows")
    with pytest.raises(ValueError, match=r"weight_grad='rows' needs a set.*for row 1"):
        ll.linear_token_stats(h, w, t, sampling_mask=mask, weight_grad="rows")
    with pytest.raises(ValueError, match="memory_budget must be at least"):
        ll.linear_token_stats(h, w, t, sampling_mask=mask, memory_budget=8)
