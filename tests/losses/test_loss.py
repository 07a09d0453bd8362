"""Every spec against the oracle: losses, metrics, coefficients; splits, masks, extremes, errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitless import _core, reference
from logitless.loss.evaluate.inputs import BatchStats, Totals
from logitless.loss.spec import (
    ClipV,
    EntropyWeights,
    PolicyLossSpec,
    Reinforce,
    Unclipped,
)
from logitless.loss.spec.presets import presets
from logitless.ops.batch_stats import batch_stats
from logitless.ops.policy_loss import policy_loss
from tests.support.losses import loss_outcomes
from tests.support.losses.loss_outcomes import Outcome, core_params
from tests.support.losses.loss_specs import MAX_LENGTH, SELECTING, SPECS, Batch, make_batch

ROUNDING = {np.float32: 2e-7, np.float64: 1e-14}


def stats_of(batch: Batch, spec: PolicyLossSpec, **packing: Any) -> BatchStats:
    return batch_stats(
        batch.logp, batch.advantages, batch.mask, spec, old_logp=batch.old_logp,
        entropy=batch.entropy, entropy_change=batch.entropy_change,
        rollout_logp=batch.rollout_logp, token_ids=batch.token_ids, seed=0, step=0, **packing,
    )  # fmt: skip


def coefficients(batch: Batch, spec: PolicyLossSpec, **packing: Any) -> tuple[Any, Outcome]:
    """Whole batch: ClipV selects by what only batch_stats is given."""
    if isinstance(spec.control, ClipV):
        packing["batch"] = stats_of(batch, spec, **packing)
    return loss_outcomes.coefficients(*batch.inputs, spec, **batch.optional, **packing)


def oracle(batch: Batch, spec: PolicyLossSpec, **packing: Any) -> tuple[Any, ...]:
    return reference.policy_loss(
        *batch.inputs, spec, entropy_change=batch.entropy_change, **batch.optional, **packing
    )


def check(batch: Batch, spec: PolicyLossSpec, tolerance: float, **packing: Any) -> None:
    """The whole batch in one call against the oracle."""
    _, result = coefficients(batch, spec, **packing)
    loss, metrics, g_logp, g_entropy = oracle(batch, spec, **packing)
    assert result.loss == pytest.approx(loss, rel=1e-12, abs=1e-14)
    ours = {k: x for k, x in result.metrics.items() if k.startswith("actor/")}
    assert ours == pytest.approx(metrics, rel=1e-12, abs=1e-14)
    np.testing.assert_allclose(result.g_logp, g_logp.ravel(), rtol=tolerance, atol=1e-16)
    assert (result.g_entropy is None) == (spec.entropy is None)
    if result.g_entropy is not None:
        np.testing.assert_allclose(result.g_entropy, g_entropy.ravel(), rtol=tolerance, atol=1e-16)


@pytest.mark.parametrize("dtype", ROUNDING, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_padded_against_the_oracle(spec: PolicyLossSpec, dtype: Any) -> None:
    check(make_batch(dtype=dtype), spec, ROUNDING[dtype])


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_packed_against_the_oracle_and_padded(spec: PolicyLossSpec) -> None:
    batch = make_batch(1)
    if spec.aggregation == "seq-mean-token-sum-norm":
        spec = replace(spec, max_length=20)
    packed, cu_seqlens = batch.packed()
    check(packed, spec, 1e-14, cu_seqlens=cu_seqlens)
    _, together = coefficients(packed, spec, cu_seqlens=cu_seqlens)
    _, padded = coefficients(batch, spec)
    assert together.loss == pytest.approx(padded.loss, rel=1e-12, abs=1e-15)
    assert together.metrics == pytest.approx(padded.metrics, rel=1e-6, abs=1e-7)


def test_specs_select_and_clip_something() -> None:
    """The comparisons above would be hollow on a batch where nothing is clipped or selected."""
    batch = make_batch()
    for name, spec in SPECS.items():
        _, metrics, *_ = oracle(batch, spec)
        if name.startswith("many"):
            assert 0.05 < metrics["actor/cov_selected"] < 0.5, name
        if name in ("ppo", "grpo", "dapo", "dual"):
            assert metrics["actor/pg_clipfrac"] > 0.1, name
        if name == "dual":
            assert metrics["actor/pg_clipfrac_lower"] > 0.01


# ---- micro-batches


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_micro_batches_of_sequences_add_up(spec: PolicyLossSpec) -> None:
    batch = make_batch(2)
    spec = replace(spec, max_length=77) if "norm" in spec.aggregation else spec
    stats = stats_of(batch, spec)
    loss, metrics, g_logp, _ = oracle(batch, spec)
    parts = [batch.rows(which) for which in ([5, 0], [1], [4, 2, 3])]
    results = [
        loss_outcomes.coefficients(*p.inputs, spec, **p.optional, batch=stats)[1] for p in parts
    ]
    assert sum(r.loss for r in results) == pytest.approx(loss, rel=1e-12)
    for name, value in metrics.items():
        assert sum(r.metrics[name] for r in results) == pytest.approx(value, rel=1e-12), name
    together = np.concatenate([r.g_logp for r in results])
    np.testing.assert_allclose(together, g_logp[[5, 0, 1, 4, 2, 3]].ravel(), rtol=1e-14)


@pytest.mark.parametrize("name", ["ppo", "token_sum", "k3", "many_clip_cov", "many_kl_cov"])
def test_token_losses_add_up_over_any_cut(name: str) -> None:
    """Cuts inside sequences, and a piece without a single valid token."""
    spec, batch = SPECS[name], make_batch(3)
    stats = batch_stats(
        batch.logp, batch.advantages, batch.mask, spec, old_logp=batch.old_logp,
        token_ids=batch.token_ids, seed=0, step=0,
    )  # fmt: skip
    loss, _, g_logp, _ = reference.policy_loss(*batch.inputs, spec, **batch.optional)
    flat = Batch(**{k: x.ravel() for k, x in vars(batch).items()})
    pieces = [slice(0, 1), slice(1, 17), slice(17, 59), slice(59, 60), slice(60, 120)]
    results = [
        loss_outcomes.coefficients(
            *flat.rows(p).inputs, spec, **flat.rows(p).optional, batch=stats
        )[1]
        for p in pieces
    ]  # fmt: skip
    assert sum(r.loss for r in results) == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(
        np.concatenate([r.g_logp for r in results]), g_logp.ravel(), rtol=1e-14
    )


def test_totals_alone_and_grad_scale() -> None:
    batch = make_batch()
    totals = Totals(tokens=3 * int(batch.mask.sum()), sequences=50, world_size=4)
    alone = policy_loss(*batch.inputs, presets["ppo"])
    share = policy_loss(*batch.inputs, presets["ppo"], totals=totals, grad_scale=4.0)
    assert float(share.loss) == pytest.approx(float(alone.loss) * 4 / 3, rel=1e-13)
    assert "actor/cov_mean" in alone.metrics and "actor/cov_mean" not in share.metrics
    clipped = [x.metrics["actor/pg_clipfrac"] for x in (alone, share)]
    assert float(clipped[1]) == pytest.approx(float(clipped[0]) / 3)
    whole = policy_loss(*batch.inputs, presets["grpo"])
    per_sequence = policy_loss(*batch.inputs, presets["grpo"], totals=totals)
    nonempty = int(batch.mask.any(axis=1).sum())
    assert float(per_sequence.loss) == pytest.approx(float(whole.loss) * nonempty / 50)


def test_right_answers_are_credited_where_unsure_and_wrong_ones_blamed_where_sure() -> None:
    """By hand: H = 1 and 3 of a right answer are 1/2 and 3/2 of their mean; 1 / H = 4 and 100 (the
    floor) of a wrong one are 1/13 and 25/13 of theirs. Either answer keeps its sum."""
    spec = PolicyLossSpec("none", Reinforce(), EntropyWeights(0.5), aggregation="token-sum")
    entropy = np.array([[1.0, 3.0], [0.25, 1e-9], [2.0, 5.0]])
    advantages = np.array([[2.0], [-1.0], [0.0]]) * np.ones(2)
    logp, mask = np.full((3, 2), -1.0), np.ones((3, 2), bool)
    _, result = loss_outcomes.coefficients(logp, None, advantages, mask, spec, entropy=entropy)
    expected = [[-1.5, -2.5], [0.5 + 0.5 / 13, 0.5 + 12.5 / 13], [0.0, 0.0]]
    np.testing.assert_allclose(result.g_logp.reshape(3, 2), expected, rtol=1e-14)
    # one-sided, or without any entropy, it is the plain loss
    for a, h in ((advantages[:1], 0 * entropy[:1]), (advantages[2:], entropy[2:])):
        _, alone = loss_outcomes.coefficients(logp[:1], None, a, mask[:1], spec, entropy=h)
        np.testing.assert_array_equal(alone.g_logp, -a.ravel())


def test_kl_cov_on_policy_acts_against_a_policy_that_differs() -> None:
    """|logp - old_logp| has slope 0 where the two are the same; |logp - ref_logp| has not."""
    batch = make_batch()
    on_policy = replace(batch, old_logp=batch.logp)
    plain, idle, acting = (
        coefficients(on_policy, SPECS[name])[1]
        for name in ("unclipped", "many_kl_cov", "many_kl_cov_ref")
    )
    assert idle.metrics["actor/cov_selected"] == acting.metrics["actor/cov_selected"] > 0.1
    np.testing.assert_array_equal(idle.g_logp, plain.g_logp)
    moved = np.count_nonzero(acting.g_logp != plain.g_logp)
    assert moved == round(acting.metrics["actor/cov_selected"] * batch.mask.sum())


# ---- masks and extremes


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_mask_lengths_and_extremes(data: st.DataObject) -> None:
    """Log ratios up to +-50 and any mask, empty sequences and an empty batch included."""
    rows, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    name = data.draw(st.sampled_from(sorted(SPECS)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    mask = rng.random((rows, width)) < data.draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    spread = data.draw(st.sampled_from([0.0, 1e-6, 1.0, 50.0]))
    old = -rng.exponential(size=mask.shape) * 20 - data.draw(st.sampled_from([0.0, 50.0]))
    values = {
        "logp": np.minimum(old + rng.uniform(-spread, spread, mask.shape), -1e-9),
        "old_logp": old,
        "ref_logp": old + rng.uniform(-spread, spread, mask.shape),
        "rollout_logp": old + rng.uniform(-spread, spread, mask.shape),
        "entropy_change": rng.normal(size=mask.shape),
        "entropy": rng.exponential(size=mask.shape),
        "old_entropy": rng.exponential(size=mask.shape),
        "advantages": rng.choice([-3.0, 0.0, 1e-3, 2.0], size=mask.shape),
    }
    batch = Batch(
        **{k: np.where(mask, x, np.nan) for k, x in values.items()},
        mask=mask,
        token_ids=rng.permutation(mask.size).reshape(mask.shape),
    )
    check(batch, SPECS[name], 1e-13)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 1e30])
def test_nothing_outside_the_mask_leaks(spec: PolicyLossSpec, poison: float) -> None:
    batch = make_batch(4, dtype=np.float32)
    names = ("logp", "old_logp", "ref_logp", "rollout_logp", "entropy", "advantages")
    outcomes = []
    for value in (0.0, poison):
        filled = {n: np.where(batch.mask, getattr(batch, n), np.float32(value)) for n in names}
        other = replace(batch, **filled)
        outcomes.append(coefficients(other, spec)[1])
    clean, poisoned = outcomes
    assert clean.loss == poisoned.loss and clean.metrics == poisoned.metrics
    np.testing.assert_array_equal(clean.g_logp, poisoned.g_logp)
    assert (poisoned.g_logp[~batch.mask.ravel()] == 0).all()


def test_zero_advantage_is_zero_loss_even_where_the_ratio_overflows() -> None:
    one = np.ones(1)
    _, result = loss_outcomes.coefficients(900 * one, 0 * one, 0 * one, one > 0, presets["kl_cov"])
    assert result.loss == 900.0 and result.g_logp[0] == 1.0
    _, result = loss_outcomes.coefficients(900 * one, 0 * one, one, one > 0, presets["ppo"])
    assert result.loss == -1.2 and result.g_logp[0] == 0.0
    # unclipped on the side of a negative advantage: as large as it says, never clamped
    _, result = loss_outcomes.coefficients(50 * one, 0 * one, -one, one > 0, presets["ppo"])
    assert result.loss == pytest.approx(np.exp(50.0), rel=1e-14)


def test_threads_do_not_change_a_bit() -> None:
    rng = np.random.default_rng(5)
    n = 40_000
    lp, old, a = (rng.normal(size=n) for _ in range(3))
    weights = np.where(rng.random(n) < 0.7, 1.0 / n, 0.0)
    seen = []
    for threads in (1, 2, 5):
        g = np.empty(n)
        told = core_params(presets["ppo"])
        _core.tokens.token_loss(
            logp=lp, old_logp=old, advantages=a, weights=weights, entropy=None, kl_logp=None,
            selected=None, g_logp=g, g_entropy=None, mean_advantage=0.1, mean_logp=-0.2,
            grad_scale=1.0, threads=threads, **told,
        )  # fmt: skip
        seen.append((told["sums"].tobytes(), g.tobytes()))
    assert seen[0] == seen[1] == seen[2]


# ---- errors


BATCH = make_batch()
LP, OLD, A, M = BATCH.inputs
FLAT = tuple(x.ravel() for x in BATCH.inputs)
NAN, INF = np.where(M, np.nan, 0.0), np.where(M, np.inf, 0.0)
CU = np.array([0, 60, 120], np.int32)
TOTALS = Totals(1000, 10)
STATS = batch_stats(LP, A, M, presets["kl_cov"], token_ids=BATCH.token_ids, seed=0, step=0)
CALLS: dict[str, tuple[tuple[Any, ...], str, dict[str, Any], type[Exception], list[str]]] = {
    "logp-int": ((M, OLD, A, M), "ppo", {}, TypeError, ["logp", "bool"]),
    "logp-list": (([1.0], OLD, A, M), "ppo", {}, TypeError, ["logp", "list"]),
    "logp-3d": ((LP[None], OLD, A, M), "ppo", {}, ValueError, ["logp", "[1, 6, 20]"]),
    "old-shape": ((LP, OLD[:3], A, M), "ppo", {}, ValueError, ["old_logp", "[6, 20]", "[3, 20]"]),
    "old-int": ((LP, M, A, M), "ppo", {}, TypeError, ["old_logp", "bool"]),
    "mask-float": ((LP, OLD, A, LP), "ppo", {}, TypeError, ["mask", "bool", "float64"]),
    "mask-shape": ((LP, OLD, A, M[:, :2]), "ppo", {}, ValueError, ["mask", "[6, 2]"]),
    "advantages-shape": ((LP, OLD, A[:5, 0], M), "ppo", {}, ValueError, ["advantages", "[5]"]),
    "ids-dtype": (BATCH.inputs, "ppo", {"token_ids": LP}, TypeError, ["token_ids", "int64"]),
    "logp-nan": ((NAN, OLD, A, M), "ppo", {}, ValueError, ["logp", "nan", "at [0, 0]"]),
    "old-nan": ((LP, NAN, A, M), "ppo", {}, ValueError, ["old_logp=nan", "at [0, 0]"]),
    "advantages-inf": ((LP, OLD, INF, M), "ppo", {}, ValueError, ["advantages", "inf", "[0, 0]"]),
    "logp-inf": ((INF, OLD, A, M), "reinforce", {}, ValueError, ["logp", "inf", "at [0, 0]"]),
    "entropy-nan": (BATCH.inputs, "entropy", {"entropy": NAN}, ValueError, ["entropy=nan"]),
    "ref-inf": (BATCH.inputs, "k3", {"entropy": LP, "ref_logp": INF}, ValueError, ["ref_logp=inf"]),
    "rollout-nan": (
        BATCH.inputs, "correction_tis", {"rollout_logp": NAN}, ValueError, ["rollout_logp", "nan"]
    ),
    "no-ref": (BATCH.inputs, "many_kl_cov_ref", {}, ValueError, ["ref_logp", "KLCov("]),
    "no-entropy": (BATCH.inputs, "entropy", {}, ValueError, ["entropy", "EntropyBonus"]),
    "no-top": (BATCH.inputs, "top_entropy", {}, ValueError, ["entropy", "spec.control=TopEnt"]),
    "no-rollout": (BATCH.inputs, "prime_rl", {}, ValueError, ["rollout_logp", "spec.kl=KL"]),
    "clip-v": (BATCH.inputs, "clip_v", {"entropy": LP}, ValueError, ["ClipV", "entropy_change="]),
    "cu-padded": (BATCH.inputs, "ppo", {"cu_seqlens": CU}, ValueError, ["cu_seqlens", "packed"]),
    "cu-missing": (FLAT, "grpo", {}, ValueError, ["cu_seqlens", "[N]"]),
    "cu-cut": (FLAT, "grpo", {"cu_seqlens": CU[:2]}, ValueError, ["cu_seqlens", "120", "whole"]),
    "cu-float": (FLAT, "grpo", {"cu_seqlens": CU / 1.0}, TypeError, ["cu_seqlens", "float64"]),
    "norm-packed": (FLAT, "dr_grpo", {"cu_seqlens": CU}, ValueError, ["max_length", "None"]),
    "norm-totals": (BATCH.inputs, "dr_grpo", {"totals": TOTALS}, ValueError, ["max_length"]),
    "both": (BATCH.inputs, "kl_cov", {"batch": STATS, "totals": TOTALS}, ValueError, ["totals"]),
    "totals-select": (BATCH.inputs, "kl_cov", {"totals": TOTALS}, ValueError, ["batch_stats"]),
    "totals-small": (BATCH.inputs, "ppo", {"totals": Totals(3, 1)}, ValueError, ["tokens=3"]),
    "batch-ids": (BATCH.inputs, "kl_cov", {"batch": STATS}, ValueError, ["token_ids"]),
    "batch-other": (BATCH.inputs, "clip_cov", {"batch": STATS}, ValueError, ["KLCov", "ClipCov"]),
    "spec-name": (BATCH.inputs, "name", {}, TypeError, ["spec", "PolicyLossSpec", "'grpo'"]),
    "totals-int": (BATCH.inputs, "ppo", {"totals": 9}, TypeError, ["totals", "Totals", "9"]),
    "scale": (BATCH.inputs, "ppo", {"grad_scale": np.inf}, ValueError, ["grad_scale", "inf"]),
}  # fmt: skip


@pytest.mark.parametrize("inputs, name, options, error, words", CALLS.values(), ids=CALLS)
def test_bad_calls(
    inputs: tuple[Any, ...],
    name: str,
    options: dict[str, Any],
    error: type[Exception],
    words: list[str],
) -> None:
    with pytest.raises(error) as caught:
        policy_loss(*inputs, SPECS.get(name, "grpo"), **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    "name, what",
    [
        *((name, "old_logp") for name in ("gspo", "gspo_token", "gmpo", "vespo", "opsm")),
        *((name, "rollout_logp") for name in ("opsm_rollout", "correction_mis", "prime_rl")),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_number_inside_a_sequence_is_named_at_its_place(
    name: str, what: str, value: float
) -> None:
    """A sum over its sequence, or a mean compared with a bound, could hide which token it was."""
    i, j = (int(x[len(x) // 2]) for x in np.nonzero(M))
    assert M[i, :j].any()
    spoiled = getattr(BATCH, what).copy()
    spoiled[i, j] = value
    batch = replace(BATCH, **{what: spoiled})
    with pytest.raises(ValueError, match=rf"{what}.*{value}.* at \[{i}, {j}\]"):
        policy_loss(*batch.inputs, SPECS[name], **batch.optional)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)])
@pytest.mark.parametrize("name", ["ppo", "many_clip_cov", "many_kl_cov", "many_top_entropy"])
def test_no_tokens_no_loss(name: str, shape: tuple[int, ...]) -> None:
    x, mask = np.zeros(shape), np.ones(shape, bool)
    out = policy_loss(x, x, x, mask, SPECS[name], entropy=x)
    assert float(out.loss) == 0.0 and set(map(float, out.metrics.values())) == {0.0}


def test_cases_are_in_reach_of_their_token_ids() -> None:
    assert BATCH.mask.shape[1] <= MAX_LENGTH and len(SELECTING) >= 6
    assert isinstance(SPECS["unclipped"].surrogate, Unclipped)
