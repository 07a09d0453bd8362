"""Losses at the ends of their dtype: every result is a number, or an error names the token."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import logitless as ll
from logitless import reference
from tests.support.losses.loss_outcomes import coefficients

B, T = 2, 3
MASK = np.array([[True, True, False], [True, True, True]])
IDS = np.arange(B * T).reshape(B, T)
# log ratio, advantage, log ratio to the reference, entropy of the token at [1, 1]
FAR = list(itertools.product((-1e4, -800.0, -90.0, 0.0, 90.0, 800.0, 1e4), (-1e38, -1.0, 0.0, 1.0)))
TERMS: dict[str, dict[str, Any]] = {
    "bare": {},
    "k3": {"kl": ll.KL("k3", 0.1)},
    "low_var": {"kl": ll.KL("low_var", 0.1)},
    "k2+": {"kl": ll.KL("k2+", 0.1)},
    "floor": {"entropy": ll.EntropyFloor(0.1, 1.0)},
}
BASES = {
    name: spec if spec.max_length or not spec.aggregation.endswith("norm")
    else replace(spec, max_length=T)
    for name, spec in ll.presets.items()
}  # fmt: skip


def specs() -> dict[str, ll.PolicyLossSpec]:
    return {
        f"{name}-{term}": replace(spec, **fields)
        for name, spec in BASES.items()
        for term, fields in TERMS.items()
        if not (name == "entropy_only" and "entropy" in fields)
    }


def inputs(dtype: Any, ratio: float, advantage: float) -> dict[str, np.ndarray]:
    """A quiet batch but for one token; what is outside of the mask is NaN."""
    x = {
        "logp": np.full((B, T), -1.0), "old_logp": np.full((B, T), -1.1),
        "advantages": np.array([[1.0, -1.0, 0.5], [-0.5, 1.0, -2.0]]),
        "ref_logp": np.full((B, T), -1.2), "rollout_logp": np.full((B, T), -1.1),
        "entropy": np.full((B, T), 0.7), "entropy_change": np.full((B, T), 0.1),
        "old_entropy": np.full((B, T), 0.71),
    }  # fmt: skip
    x["old_logp"][1, 1] = x["rollout_logp"][1, 1] = -1.0 - ratio
    x["ref_logp"][1, 1] = -1.0 + ratio
    x["advantages"][1, 1], x["entropy"][1, 1] = advantage, 0.0
    return {name: np.where(MASK, v, np.nan).astype(dtype) for name, v in x.items()}


def quiet_batch(spec: ll.PolicyLossSpec, dtype: Any) -> ll.BatchStats:
    x = inputs(dtype, 0.1, 1.0)
    names = ("old_logp", "entropy", "entropy_change", "rollout_logp")
    return ll.batch_stats(
        x["logp"], x["advantages"], MASK, spec, token_ids=IDS, seed=0, step=0,
        **{name: x[name] for name in names},
    )  # fmt: skip


def evaluated(args: Any, options: Any) -> tuple[Any, str]:
    try:
        return coefficients(*args, **options)[1], ""
    except ValueError as error:
        return None, str(error)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", specs())
def test_a_result_is_a_number_or_its_token_is_named(name: str, dtype: Any) -> None:
    spec = specs()[name]
    batch = quiet_batch(spec, dtype)
    largest = np.finfo(dtype).max
    for ratio, advantage in FAR:
        x = inputs(dtype, ratio, advantage)
        options = {k: x[k] for k in ("entropy", "ref_logp", "rollout_logp", "old_entropy")}
        args = (x["logp"], x["old_logp"], x["advantages"], MASK, spec)
        found, refusal = evaluated(args, {**options, "token_ids": IDS, "batch": batch})
        if found is None:
            # of a sequence's ratio all tokens share the coefficient
            assert "finite" in refusal and "at [1, " in refusal, (ratio, advantage, refusal)
            assert abs(ratio) >= 90 or abs(advantage) > 1e30, (ratio, advantage, refusal)
            continue
        assert abs(found.loss) <= largest, (ratio, advantage)
        assert np.isfinite(found.g_logp).all(), (ratio, advantage)
        assert found.g_entropy is None or np.isfinite(found.g_entropy).all()
        assert (found.g_logp.reshape(B, T)[~MASK] == 0).all()
        assert not any(math.isnan(value) for value in found.metrics.values()), found.metrics


@pytest.mark.parametrize("name", ["ppo", "grpo", "dapo", "cispo", "sapo"])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_what_the_clip_bounds_is_no_error(name: str, sign: float) -> None:
    """The loss at a ratio of e^600 is the oracle's, and the same where no number is the ratio."""
    found = []
    for ratio in (600.0, 800.0, 1e4):
        x = inputs(np.float64, sign * ratio, 1.0)
        args = (x["logp"], x["old_logp"], x["advantages"], MASK, ll.presets[name])
        found.append(coefficients(*args)[1])
        if ratio == 600.0:
            loss, _, g_logp, _ = reference.policy_loss(*args)
    for result in found:
        assert result.loss == pytest.approx(loss, rel=1e-12)
        np.testing.assert_allclose(result.g_logp, g_logp.ravel(), rtol=1e-12, atol=1e-200)


def call(logp: Any, old: Any, advantages: Any, spec: Any, **options: Any) -> Any:
    mask = np.ones(len(logp), np.bool_)
    return ll.policy_loss(logp, old, advantages, mask, spec, **options)


def test_the_message_names_token_ratio_advantage_and_preset() -> None:
    zeros, old = np.zeros(5000), np.zeros(5000)
    old[[4321, 4999]] = -800
    with pytest.raises(ValueError, match="policy_loss") as caught:
        call(zeros, old, np.where(old, -2.0, 1.0), ll.presets["ppo"])
    words = ("at [4321]", "log ratio 800.0", "advantage -2.0", "presets['ppo']", "finite")
    assert all(word in str(caught.value) for word in words), caught.value


def test_infinities_of_both_signs_are_no_loss() -> None:
    zeros, old = np.zeros(2), np.full(2, -800.0)
    with pytest.raises(ValueError, match=r"policy_loss: the loss of a token.* at \[0\]: log ratio"):
        call(zeros, old, np.array([1.0, -1.0]), ll.presets["kl_cov"])


def test_the_dtype_of_the_result_decides() -> None:
    """exp(100) is a float64, and no float32; 20000 is a float32, and times five no float16."""
    zeros, a = np.zeros(2), np.array([-1.0, -1.0])
    assert np.isfinite(call(zeros, zeros - 100, a, ll.presets["ppo"]).loss)
    narrow = (x.astype(np.float32) for x in (zeros, zeros - 100, a))
    with pytest.raises(ValueError, match=r"at \[0\]: log ratio 100\.0"):
        call(*narrow, ll.presets["ppo"])
    torch = pytest.importorskip("torch")
    for dtype, far in ((torch.float16, 12.0), (torch.bfloat16, 90.0), (torch.float32, 90.0)):
        logp = torch.zeros(2, dtype=dtype, requires_grad=True)
        old = torch.tensor([0.0, -far], dtype=dtype)
        mask = torch.ones(2, dtype=torch.bool)
        with pytest.raises(ValueError, match=rf"at \[1\]: log ratio {far}"):
            ll.policy_loss(logp, old, torch.tensor([-1.0, -1.0]), mask, ll.presets["ppo"])


def test_a_sum_that_overflows_names_its_largest_token() -> None:
    spec = replace(ll.presets["ppo"], aggregation="token-sum")
    with pytest.raises(ValueError, match=r"at \[1\]: .*advantage -1\.2e\+308"):
        call(np.zeros(2), np.zeros(2), np.array([-1.1e308, -1.2e308]), spec, totals=ll.Totals(2, 1))


def test_a_coefficient_of_zero_is_no_term() -> None:
    """A KL that is only looked at does not enter the loss, however far the reference is."""
    spec = replace(ll.presets["ppo"], kl=ll.KL("k3", 0.0))
    ref = np.full(2, 800.0)
    out = call(np.zeros(2), np.zeros(2), np.ones(2), spec, ref_logp=ref)
    assert out.loss == -1.0 and out.metrics["actor/kl_loss"] == math.inf


@pytest.mark.parametrize("tail_mass", [0.0, 1e-3])
def test_the_linear_loss_raises_too_and_weights_stay(tail_mass: float) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    hidden, weight = torch.randn(6, 8), torch.randn(40, 8, requires_grad=True)
    old, mask = torch.full((6,), -800.0), torch.ones(6, dtype=torch.bool)
    a = torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0, 1.0])
    with pytest.raises(ValueError, match=r"^linear_policy_loss: the loss of a token.* at \[2\]"):
        ll.linear_policy_loss(
            hidden, weight, torch.arange(6), old, a, mask, ll.presets["ppo"], tail_mass=tail_mass
        )
    mask[[2, 4]] = False
    out = ll.linear_policy_loss(
        hidden, weight, torch.arange(6), old, a, mask, ll.presets["ppo"], tail_mass=tail_mass
    )
    out.loss.backward()
    assert torch.isfinite(out.loss) and torch.isfinite(weight.grad).all()


def test_rows_still_to_come_are_no_error() -> None:
    """Chunks of the one-pass: before it is scored a row has the logp of the old policy."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    n, v = 256, 40
    hidden, weight = torch.randn(n, 8) * 0.1, torch.randn(v, 8, requires_grad=True)
    bias = torch.zeros(v)
    bias[1:] = -300.0
    targets, mask = torch.ones(n, dtype=torch.int64), torch.ones(n, dtype=torch.bool)
    rollout, a = torch.full((n,), -300.0), -torch.ones(n)
    spec = ll.PolicyLossSpec(ratio="inference")
    budgets = (None, ll.plan(n, 8, v, budget=None).budget // 2)
    losses = [
        ll.linear_policy_loss(
            hidden, weight, targets, None, a, mask, spec, rollout_logp=rollout, bias=bias,
            memory_budget=budget, totals=ll.Totals(n, 0),
        ).loss.item()
        for budget in budgets
    ]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and math.isfinite(losses[0])


def test_rollout_weights_fit_their_dtype() -> None:
    old, mask = np.zeros(3, np.float32), np.ones(3, np.bool_)
    rollout = np.array([0, -800, 800], np.float32)
    weights = ll.rollout_weights(old, rollout, mask, ll.corrections["tis"]).weights
    assert weights.tolist() == [1.0, 2.0, 0.0]
    wide = ll.Correction("token", high=1e300)
    with pytest.raises(ValueError, match=r"rollout_weights: .* at \[1\].*800"):
        ll.rollout_weights(old, rollout, mask, wide)
