"""OREO, implicit rewards, their training, degrees and ensembles against plain loops."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given as drawn

import logitless as ll
from logitless.reference import preference as plain
from tests.preference.draws import CLOSE, KINDS, answers, array, few, given

P = ll.preference
OREO = ("logp", "ref_logp", "values", "rewards", "mask")


@pytest.mark.parametrize("token_level", [True, False])
@few
@drawn(x=answers())
def test_oreo_and_its_gradients(token_level: bool, x: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    states = x["mask"] if token_level else x["steps"]
    tensors = {name: torch.from_numpy(x[name]) for name in OREO}
    for name in ("logp", "values"):
        tensors[name].requires_grad_()
    given_states = None if token_level else torch.from_numpy(states)
    policy, value = P.oreo(**tensors, states=given_states, beta=x["beta"])
    numpy = P.oreo(**{n: x[n] for n in OREO}, states=None if token_level else states,
                   beta=x["beta"])  # fmt: skip
    g_policy = torch.autograd.grad(policy.sum(), tensors["logp"], retain_graph=True)[0].numpy()
    g_value = torch.autograd.grad(value.sum(), tensors["values"])[0].numpy()
    # each loss has one gradient alone
    unused = torch.autograd.grad(P.oreo(**tensors).policy.sum(), tensors["values"],
                                 allow_unused=True)  # fmt: skip
    assert unused == (None,)
    for i, valid in enumerate(x["mask"]):
        part = [x[n][i][valid] for n in ("logp", "ref_logp", "values")]
        want = plain.oreo(*part, x["rewards"][i], states[i][valid], x["beta"])
        for result in ((policy, value), numpy):
            np.testing.assert_allclose([array(a)[i] for a in result], want[:2], **CLOSE)
        for gradient, expected in zip((g_policy[i], g_value[i]), want[2:], strict=True):
            np.testing.assert_allclose(gradient[valid], expected, **CLOSE)
            assert not gradient[~valid].any()


def test_the_policy_gradient_of_oreo_is_that_of_the_current_action() -> None:
    """Against finite differences of one state's loss, later tokens held."""
    torch = pytest.importorskip("torch")
    logp = torch.tensor([[-1.0, -0.5, -2.0]], dtype=torch.float64)
    ref, values, rewards = logp * 0.7, logp * 0.1, torch.ones(1, dtype=torch.float64)
    mask = torch.ones(1, 3, dtype=torch.bool)
    leaf = logp.clone().requires_grad_()
    P.oreo(leaf, ref, values, rewards, mask, beta=0.5).policy.sum().backward()
    h = 1e-6

    def at(move: float) -> float:
        """The last state's share: no other sees its token with a gradient."""
        rest = 0.5 * (logp[0, 2] + move - ref[0, 2])
        return float((values[0, 2] + rest - 1) ** 2 / 3)

    assert leaf.grad[0, 2].item() == pytest.approx((at(h) - at(-h)) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cumulative", [False, True])
@few
@drawn(x=answers())
def test_implicit_rewards(cumulative: bool, kind: str, x: dict[str, Any]) -> None:
    arrays = given(kind, x["logp"], x["ref_logp"], x["steps"], x["mask"])
    result = array(P.implicit_rewards(*arrays, beta=x["beta"], cumulative=cumulative))
    want = np.zeros(x["mask"].shape)
    for i, valid in enumerate(x["mask"]):
        part = (x[n][i][valid] for n in ("logp", "ref_logp", "steps"))
        want[i][valid] = plain.implicit_rewards(*part, x["beta"], cumulative)
    np.testing.assert_allclose(result, want, **CLOSE)


def test_rewards_of_steps_add_up_to_the_log_ratio_of_the_answer() -> None:
    rng = np.random.default_rng(0)
    logp, ref = rng.uniform(-2, 0, (2, 3, 8))
    mask = np.ones((3, 8), bool)
    steps = rng.random((3, 8)) > 0.5
    steps[:, -1] = True
    result = P.implicit_rewards(logp, ref, steps, mask, beta=0.3)
    ratio = ll.sequence_logp(logp) - ll.sequence_logp(ref)
    np.testing.assert_allclose(result.sum(axis=1), 0.3 * ratio, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_outcome_and_spo(kind: str) -> None:
    rng = np.random.default_rng(1)
    logp, ref, labels = rng.uniform(-5, 0, 4), rng.uniform(-5, 0, 4), np.array([1, 0, 0.5, 1.0])
    result = array(P.outcome(*given(kind, logp, ref, labels), beta=0.4))
    want = [plain.outcome(*x, 0.4) for x in zip(logp, ref, labels, strict=True)]
    np.testing.assert_allclose(result, want, **CLOSE)
    scores, degrees = rng.normal(size=(4, 3)), np.array([0, 2, 1, 2])
    result = array(P.spo(*given(kind, scores, degrees)))
    want = [plain.spo(*x) for x in zip(scores, degrees, strict=True)]
    np.testing.assert_allclose(result, want, **CLOSE)


def test_gradients_of_outcome_and_spo() -> None:
    torch = pytest.importorskip("torch")
    g = torch.Generator().manual_seed(2)
    logp, ref, scores = (torch.randn(*s, generator=g, dtype=torch.float64)
                         for s in ((3,), (3,), (3, 4)))  # fmt: skip
    labels, degrees = torch.tensor([1.0, 0.0, 0.25]).double(), torch.tensor([3, 0, 1])
    check = torch.autograd.gradcheck
    assert check(lambda x: P.outcome(x, ref, labels, beta=0.4), [logp.requires_grad_()])
    assert check(lambda x: P.spo(x, degrees), [scores.requires_grad_()])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 3, 2)])
def test_ensembles(kind: str, shape: tuple[int, ...]) -> None:
    rewards = np.random.default_rng(4).normal(size=(5, *shape))
    (x,) = given(kind, rewards)
    np.testing.assert_array_equal(array(P.worst_case(x)), rewards.min(axis=0))
    want = [plain.uncertainty_weighted(r, 0.7) for r in rewards.reshape(5, -1).T]
    result = array(P.uncertainty_weighted(x, coefficient=0.7))
    np.testing.assert_allclose(result, np.reshape(want, shape), **CLOSE)
    one = given(kind, rewards[:1])[0]
    np.testing.assert_array_equal(array(P.uncertainty_weighted(one)), rewards[0])


X = np.array([[-1.0, -2.0], [-0.5, -1.0]])
MASK = np.array([[True, True], [True, False]])
REFUSED: list[tuple[str, tuple[Any, ...], dict[str, Any], type, str]] = [
    ("oreo", (X, X, X, X[0], MASK[:1]), {}, ValueError, "oreo: mask must be shaped like logp"),
    ("oreo", (X, X, X, X, MASK), {}, ValueError, "oreo: rewards must be [B] = [2], got [2, 2]"),
    ("oreo", (X, X, X, X[0], MASK, ~MASK), {}, ValueError,
     "oreo: states must be False where the mask is, got 1.0 at [1, 1]"),
    ("oreo", (X, X, X, X[0] * np.inf, MASK), {}, ValueError, "oreo: rewards must be finite"),
    ("oreo", (X, X, X, X[0], MASK), {"beta": 0}, ValueError, "oreo: beta must be finite and > 0"),
    ("implicit_rewards", (X, X, ~MASK, MASK), {}, ValueError,
     "implicit_rewards: steps must be False where the mask is"),
    ("implicit_rewards", (X, X, MASK, MASK), {"cumulative": 1}, TypeError,
     "implicit_rewards: cumulative must be True or False, got 1"),
    ("outcome", (X[0], X[0], X[0]), {}, ValueError, "outcome: labels must be in [0, 1], got -1.0"),
    ("spo", (X, np.array([0, 2])), {}, ValueError,
     "spo: degrees must be in [0, 2), got 2.0 at [1]"),
    ("spo", (X, X[0]), {}, TypeError, "spo: degrees must be int64 or int32, got"),
    ("spo", (X[:, :0], np.array([0, 0])), {}, ValueError, "spo: scores must be [M, D] with D >= 1"),
    ("worst_case", (X[0],), {}, ValueError,
     "worst_case: rewards must be [M, ...], M >= 1 reward models, got [2]"),
    ("worst_case", (X[:0],), {}, ValueError, "worst_case: rewards must be [M, ...]"),
    ("uncertainty_weighted", (X,), {"coefficient": -1.0}, ValueError,
     "uncertainty_weighted: coefficient must be finite and >= 0, got -1.0"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "options", "error", "message"), REFUSED)
@pytest.mark.parametrize("kind", KINDS)
def test_refused(
    kind: str, name: str, arguments: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        getattr(P, name)(*given(kind, *arguments), **options)
