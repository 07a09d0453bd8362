"""Losses of pairs against plain formulas and finite differences."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

import logitless as ll
from logitless.reference import preference as plain
from tests.preference.draws import CLOSE, KINDS, array, few, given

P = ll.preference
SORTED = ("aot", "aot_unpaired")
PLAIN = [name for name in P.FORMS if name not in SORTED]


def pairs(seed: int, b: int = 5) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.uniform(-6, -0.1, b) for _ in range(4)]


def options_of(form: str, share: float = 0.1) -> dict[str, Any]:
    smooth = P.FORMS[form].smoothing is not None
    return {"form": form, "label_smoothing": share if smooth else 0.0}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", PLAIN)
@few
@drawn(
    seed=st.integers(0, 999), beta=st.sampled_from([0.05, 0.5, 1.0]),
    divergence=st.sampled_from(list(P.DIVERGENCES)), alpha=st.sampled_from([0.5, 1.0, 2.0]),
)  # fmt: skip
def test_forms_and_divergences(
    form: str, kind: str, seed: int, beta: float, divergence: str, alpha: float
) -> None:
    if not P.FORMS[form].of_margin:
        divergence = "reverse_kl"
    arrays, options = pairs(seed), options_of(form)
    # exp(-b m) of a large margin has no digits left in the plain formula
    tau = 0.5
    if divergence == "alpha_divergence" or form == "discopop":
        arrays = [x / 3 for x in arrays]
    more = {"beta": beta, "divergence": divergence, "alpha": alpha, "tau": tau}
    result = array(P.dpo(*given(kind, *arrays), **options, **more))
    want = [
        plain.pair_loss(form, *row, beta, options["label_smoothing"], divergence, alpha, tau)
        for row in zip(*arrays, strict=True)
    ]
    np.testing.assert_allclose(result, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_sorted_forms(kind: str) -> None:
    c, r, ref_c, ref_r = arrays = pairs(3)
    zero = np.zeros(5)
    tensors = given(kind, *arrays)
    for form, high, low in (
        ("aot", np.sort(c - r), np.sort(ref_c - ref_r)),
        ("aot_unpaired", np.sort(c - ref_c), np.sort(r - ref_r)),
    ):
        want = [plain.pair_loss("sigmoid", *x, 0.3, 0.1) for x in zip(high, low, zero, zero,
                                                                       strict=True)]  # fmt: skip
        result = array(P.dpo(*tensors, form=form, beta=0.3, label_smoothing=0.1))
        np.testing.assert_allclose(result, want, **CLOSE)


@pytest.mark.parametrize("divergence", P.DIVERGENCES)
@pytest.mark.parametrize("form", P.FORMS)
def test_gradients_against_finite_differences(form: str, divergence: str) -> None:
    torch = pytest.importorskip("torch")
    if divergence != "reverse_kl" and not P.FORMS[form].of_margin:
        with pytest.raises(ValueError, match=f"dpo: form='{form}' makes no sense with divergence="):
            P.dpo(*pairs(7), form=form, divergence=divergence)
        return
    arrays = [torch.from_numpy(x / 3) for x in pairs(7)]
    options = {**options_of(form), "beta": 0.4, "divergence": divergence, "tau": 0.5}

    def loss(c: Any, r: Any) -> Any:
        return P.dpo(c, r, *arrays[2:], **options)

    inputs = [x.clone().requires_grad_() for x in arrays[:2]]
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-5, atol=1e-8)


@pytest.mark.parametrize("form", PLAIN)
def test_where_the_policy_is_the_reference_the_gradient_is_the_slope_at_0(form: str) -> None:
    torch = pytest.importorskip("torch")
    same = torch.tensor([-2.0], dtype=torch.float64)
    leaf = same.clone().requires_grad_()
    options = {**options_of(form), "beta": 0.4}
    P.dpo(leaf, same, same, same, **options).sum().backward()
    h = 1e-6
    rise = P.dpo(same + h, same, same, same, **options) - P.dpo(same - h, same, same, same,
                                                               **options)  # fmt: skip
    assert leaf.grad.item() == pytest.approx(rise.item() / (2 * h), abs=1e-8)


def test_ipo_without_references_and_dtypes() -> None:
    torch = pytest.importorskip("torch")
    c, r, ref_c, ref_r = pairs(1)
    np.testing.assert_array_equal(P.ipo(c, r, ref_c, ref_r, beta=0.2),
                                  P.dpo(c, r, ref_c, ref_r, form="ipo", beta=0.2))  # fmt: skip
    zero = np.zeros(5)
    np.testing.assert_array_equal(P.dpo(c, r), P.dpo(c, r, zero, zero))
    half = [torch.from_numpy(x).bfloat16() for x in (c, r)]
    assert P.dpo(*half).dtype == torch.float32
    np.testing.assert_allclose(P.dpo(*half), P.dpo(*(x.double() for x in half)), rtol=1e-6)


@pytest.mark.parametrize("form", P.FORMS)
def test_extreme_margins_have_no_nan(form: str) -> None:
    torch = pytest.importorskip("torch")
    far = torch.tensor([-1e4, -1.0], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(2, dtype=torch.float64)
    loss = P.dpo(far, far.detach().flip(0), zero, zero, **options_of(form))
    loss.sum().backward()
    assert not loss.isnan().any()
    assert not far.grad.isnan().any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [0.5, 1.0])
def test_cpl(kind: str, bias: float) -> None:
    c, r, *_ = pairs(5)
    share = np.array([1.0, 0.0, 0.5, 0.25, 1.0])
    chosen, rejected, preference = given(kind, c, r, share)
    result = array(P.cpl(chosen, rejected, preference, alpha=0.3, bias=bias))
    want = [plain.cpl(*x, 0.3, bias) for x in zip(c, r, share, strict=True)]
    np.testing.assert_allclose(result, want, **CLOSE)
    alone = array(P.cpl(chosen, rejected, alpha=0.3, bias=bias))
    want = [plain.cpl(*x, 1.0, 0.3, bias) for x in zip(c, r, strict=True)]
    np.testing.assert_allclose(alone, want, **CLOSE)


def test_cpl_gradients_and_dpo_without_a_reference() -> None:
    torch = pytest.importorskip("torch")
    c, r, share = (torch.from_numpy(x) for x in (*pairs(2)[:2], np.full(5, 0.75)))
    torch.testing.assert_close(P.cpl(c, r, alpha=0.2, bias=1.0), P.dpo(c, r, beta=0.2))
    inputs = [x.clone().requires_grad_() for x in (c, r)]
    assert torch.autograd.gradcheck(lambda a, b: P.cpl(a, b, share), inputs, eps=1e-5, atol=1e-8)


C, R, G, E = pairs(0)
REFUSED: list[tuple[str, tuple[Any, ...], dict[str, Any], type, str]] = [
    ("dpo", (C, R[:3]), {}, ValueError,
     "dpo: rejected_logp must be shaped like chosen_logp, [5], got"),
    ("dpo", (C[None], R[None]), {}, ValueError, "dpo: chosen_logp must be [B], got shape [1, 5]"),
    ("dpo", (C, R, G), {}, ValueError,
     "dpo: ref_rejected_logp must be given where the other reference is, got None"),
    ("dpo", (C, R, None, E), {}, ValueError, "dpo: ref_chosen_logp must be given"),
    ("dpo", (C, R), {"form": "kto"}, ValueError, "dpo: form must be one of sigmoid, hinge,"),
    ("dpo", (C, R), {"divergence": "kl"}, ValueError, "dpo: divergence must be one of reverse_kl,"),
    ("dpo", (C, R), {"beta": 0.0}, ValueError, "dpo: beta must be finite and > 0, got 0.0"),
    ("dpo", (C, R), {"tau": 0.0}, ValueError, "dpo: tau must be finite and > 0, got 0.0"),
    ("dpo", (C, R), {"alpha": np.inf}, ValueError, "dpo: alpha must be finite, got inf"),
    ("dpo", (C, R), {"label_smoothing": 1.0}, ValueError,
     "dpo: label_smoothing must be in [0, 1) with form='sigmoid', got 1.0"),
    ("dpo", (C, R), {"form": "robust", "label_smoothing": 0.5}, ValueError,
     "dpo: label_smoothing must be in [0, 0.5) with form='robust', got 0.5"),
    ("dpo", (C, R), {"form": "exo_pair"}, ValueError,
     "dpo: label_smoothing must be in (0, 1) with form='exo_pair', got 0.0"),
    ("dpo", (C, R), {"form": "hinge", "label_smoothing": 0.1}, ValueError,
     "dpo: label_smoothing must be 0 with form='hinge', got 0.1"),
    ("dpo", (C, np.where(R[1] == R, np.nan, R)), {}, ValueError,
     "dpo: rejected_logp must be finite, got nan at [1]"),
    ("ipo", (C.astype(int), R), {}, TypeError, "ipo: chosen_logp must be float32 or"),
    ("cpl", (C, R), {"bias": 0.0}, ValueError, "cpl: bias must be in (0, 1], got 0.0"),
    ("cpl", (C, R), {"alpha": -1.0}, ValueError, "cpl: alpha must be finite and > 0, got -1.0"),
    ("cpl", (C, R, 1 - C), {}, ValueError, "cpl: preference must be in [0, 1], got"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "options", "error", "message"), REFUSED)
@pytest.mark.parametrize("kind", KINDS)
def test_refused(
    kind: str, name: str, arguments: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        getattr(P, name)(*given(kind, *arguments), **options)


def test_references_are_data() -> None:
    torch = pytest.importorskip("torch")
    c = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="dpo: ref_chosen_logp is data and gets no gradient"):
        P.dpo(c, c, c, c.detach())
    with pytest.raises(TypeError, match="all torch or all NumPy"):
        P.dpo(c, c.detach().numpy())
