"""Log-probs of sequences: padded and packed, summed, averaged and discounted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

import logitless as ll
from logitless.reference import preference as plain
from tests.preference.draws import CLOSE, KINDS, answers, array, few, given

OPTIONS: list[dict[str, Any]] = [{}, {"average": True}, {"discount": 0.9}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS)
@few
@drawn(x=answers(), gap=st.booleans())
def test_padded_and_packed_against_plain_loops(
    options: dict[str, Any], kind: str, gap: bool, x: dict[str, Any]
) -> None:
    mask = x["mask"]
    want = [plain.sequence_logp(row[m], **options) for row, m in zip(x["logp"], mask, strict=True)]
    logp, valid = given(kind, x["logp"], mask)
    padded = array(ll.sequence_logp(logp, valid, **options))
    assert padded.dtype == np.float64
    np.testing.assert_allclose(padded, want, **CLOSE)
    # packed: the valid tokens alone, or all of them with the mask
    lengths = np.full(len(mask), mask.shape[1]) if gap else mask.sum(axis=1)
    borders = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    flat, inside = (x["logp"].ravel(), mask.ravel()) if gap else (x["logp"][mask], None)
    packed = ll.sequence_logp(*(given(kind, flat, inside)), cu_seqlens=given(kind, borders)[0],
                              **options)  # fmt: skip
    np.testing.assert_array_equal(array(packed), padded)


@pytest.mark.parametrize("options", OPTIONS)
def test_gradients_against_finite_differences(options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    logp = -torch.rand(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logp[3] = float("nan")
    mask = torch.arange(7) != 3
    borders = torch.tensor([0, 2, 2, 7], dtype=torch.int32)

    def summed(x: Any) -> Any:
        return ll.sequence_logp(x, mask, cu_seqlens=borders, **options)

    leaf = logp.clone().requires_grad_()
    (summed(leaf) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert leaf.grad[3] == 0.0
    for i in torch.nonzero(mask)[:, 0].tolist():
        step = torch.zeros(7, dtype=torch.float64)
        step[i] = 1e-4
        rise = (summed(logp + step) - summed(logp - step)) @ torch.tensor([1.0, 2.0, 3.0]).double()
        assert leaf.grad[i].item() == pytest.approx(rise.item() / 2e-4, rel=1e-8)


def test_dtypes_and_no_mask() -> None:
    torch = pytest.importorskip("torch")
    logp = torch.tensor([[-1.0, -0.5], [-0.25, -2.0]])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        result = ll.sequence_logp(logp.to(dtype))
        assert result.dtype == torch.float32
        assert result.tolist() == [-1.5, -2.25]
    assert ll.sequence_logp(logp.double()).dtype == torch.float64
    assert ll.sequence_logp(logp.numpy().astype(np.float16)).dtype == np.float32
    assert ll.sequence_logp(torch.zeros(0, 3)).shape == (0,)


def test_refused() -> None:
    logp = np.full((2, 2), -1.0)
    with pytest.raises(ValueError, match=r"^sequence_logp: average=True makes no sense with disc"):
        ll.sequence_logp(logp, average=True, discount=0.5)
    with pytest.raises(ValueError, match=r"logp must be \[B, T\], or \[N\] with cu_seqlens, got"):
        ll.sequence_logp(logp[0])
    with pytest.raises(ValueError, match="cu_seqlens must rise from 0 to N = 2"):
        ll.sequence_logp(logp[0], cu_seqlens=np.array([0, 3, 2]))
    with pytest.raises(ValueError, match=r"logp must be finite, got nan at \[0, 1\]"):
        ll.sequence_logp(np.array([[0.0, np.nan]]))
