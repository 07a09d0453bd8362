"""weight_grad="rows" of two heads: weight gets a gradient of the rows that sets name alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import logitless as ll
from tests.support import mask_cases
from tests.support.teacher_cases import ANYONE, KINDS, Call, V
from tests.support.tolerances import assert_bitwise_equal

IDS = mask_cases.sets("few", 3, ANYONE, V)


def gradients(call: Call, ids: Any, **options: Any) -> tuple[Any, ...]:
    """Of hidden and weight."""
    leaves = [x.clone().requires_grad_() for x in call.heads[:2]]
    out = ll.linear_divergence(
        *leaves, *call.heads[2:], call.mask, sampling_mask=ll.SamplingMask.from_lists(ids),
        **call.options, **options,
    )  # fmt: skip
    return torch.autograd.grad(call.loss(out), leaves)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_rows_are_those_of_the_whole(dtype: Any, kind: str) -> None:
    call = Call(dtype, kind, "student")
    d_hidden, dense = gradients(call, IDS)
    other, rows = gradients(call, IDS, weight_grad="rows")
    assert_bitwise_equal(other, d_hidden)
    assert rows.is_sparse and rows.is_coalesced() and rows.dtype == dtype
    assert_bitwise_equal(rows.to_dense(), dense)
    served = zip(IDS, call.mask.tolist(), strict=True)
    named = {i for row, on in served if on for i in row}
    assert 0 < len(rows.indices()[0]) <= len(named) < V
    assert set(rows.indices()[0].tolist()) <= named


def test_an_optimizer_moves_these_rows_alone() -> None:
    call = Call(torch.float32, "reverse_kl")
    weight = torch.nn.Parameter(call.weight.clone())
    out = ll.linear_divergence(
        call.hidden, weight, *call.heads[2:], sampling_mask=ll.SamplingMask.from_lists(IDS),
        weight_grad="rows",
    )  # fmt: skip
    out.divergence.sum().backward()
    torch.optim.SGD([weight], lr=0.1).step()
    moved = (weight.detach() != call.weight).any(1).nonzero().squeeze(1)
    assert len(moved) > 0 and set(moved.tolist()) <= {i for row in IDS for i in row}


def test_no_row_at_all_has_no_rows() -> None:
    for kind in KINDS:
        call = Call(torch.float32, kind)
        call.mask[:] = False
        d_hidden, rows = gradients(call, IDS, weight_grad="rows")
        assert not d_hidden.any() and rows.is_sparse and not rows._nnz()
        _, dense = gradients(call, IDS)
        assert not dense.is_sparse and not dense.any()


def test_what_it_needs_is_named() -> None:
    call = Call(torch.float32, "jsd")
    with pytest.raises(ValueError, match="weight_grad='rows' needs a sampling_mask, got None"):
        ll.linear_divergence(*call.heads, weight_grad="rows")
    with pytest.raises(ValueError, match=r"weight_grad must be one of .*dense.*rows"):
        ll.linear_divergence(*call.heads, weight_grad="sparse")
    ids = [[] if i in (2, 5) else row for i, row in enumerate(IDS)]
    # row 2 is outside the mask
    message = "'rows' needs a set of tokens for every row of the mask, got none in .* for row 5"
    with pytest.raises(ValueError, match=message):
        gradients(call, ids, weight_grad="rows")
    given = {"sampling_mask": ll.SamplingMask.from_lists(IDS), "weight_grad": "rows"}
    with pytest.raises(ValueError, match="must be left at 'dense' for NumPy inputs, got 'rows'"):
        ll.linear_divergence(*(x.numpy() for x in call.heads), **given)
    refused = "linear_divergence: weight_grad is not built for backend 'torch': it is plain torch"
    with pytest.raises(NotImplementedError, match=refused):
        ll.linear_divergence(*call.heads, backend="torch", **given)
    made = (2 * call.weight.clone().requires_grad_(),)
    with pytest.raises(ValueError, match="needs a weight that no op has made"):
        ll.linear_divergence(call.hidden, *made, *call.heads[2:], **given)
