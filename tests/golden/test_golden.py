"""verl's and TRL's own numbers, replayed: where we agree, and where we differ on purpose.

tests/golden/make.py wrote the files from the real packages. Each test of a difference names the
report it is about and shows both numbers.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitless.loss.evaluate.inputs import Totals
from logitless.loss.spec import (
    KL,
    Cispo,
    Clip,
    ClipCov,
    Correction,
    Dro,
    EntropyBonus,
    Gmpo,
    KLCov,
    OffPolicyMask,
    PolicyLossSpec,
    Reject,
    Sapo,
    TopEntropy,
    TrustMask,
)
from logitless.loss.spec.presets import presets
from logitless.ops.batch_stats import batch_stats
from logitless.ops.rollout_weights import rollout_weights
from tests.support.losses.loss_outcomes import coefficients

GOLDEN = {
    name: json.loads((Path(__file__).with_name(f"{name}.json")).read_text())
    for name in ("verl", "trl")
}
VERL, TRL = GOLDEN["verl"], GOLDEN["trl"]
BATCH = {name: np.array(x) for name, x in VERL["inputs"].items()}
MASK = BATCH["mask"]
AGGREGATIONS = (
    "token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean",
    "seq-mean-token-sum-norm",
)  # fmt: skip
SEQUENCE = "seq-mean-token-mean"
WIDE = Clip(0.2, 0.28)
TIS = Correction("token", high=1.2)


def ours(spec: PolicyLossSpec, rows: slice = slice(None), **options: Any) -> Any:
    x = {name: value[rows] for name, value in BATCH.items()}
    inputs = (x["logp"], x["old_logp"], x["advantages"], x["mask"])
    names = ("entropy", "ref_logp", "rollout_logp")
    return coefficients(*inputs, spec, **{name: x[name] for name in names}, **options)[1]


def agree(theirs: dict[str, Any], spec: PolicyLossSpec, tolerance: float = 1e-12) -> None:
    """Loss and gradients; verl adds 1e-8 to lengths, hence the tolerance of some."""
    result = ours(spec)
    assert result.loss == pytest.approx(theirs["loss"], rel=tolerance, abs=1e-14)
    for name in ("g_logp", "g_entropy"):
        if name in theirs:
            expected = np.array(theirs[name])
            got = getattr(result, name).reshape(MASK.shape)
            np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def vanilla(aggregation: str) -> PolicyLossSpec:
    length = 32 if aggregation.endswith("norm") else None
    return PolicyLossSpec(
        surrogate=Clip(0.2, 0.28, dual=1.5), aggregation=aggregation, max_length=length
    )


VERL_LOSSES = {
    **{f"vanilla.{mode}": vanilla(mode) for mode in AGGREGATIONS},
    "vanilla.weights": PolicyLossSpec(surrogate=Clip(0.2, 0.28, dual=3.0), correction=TIS),
    "dppo_tv": PolicyLossSpec(surrogate=TrustMask("tv", 0.2, 0.28, cap=1.3)),
    "dppo_kl": PolicyLossSpec(surrogate=TrustMask("kl", 0.2, 0.28, cap=1.3)),
    "gspo": replace(presets["gspo_token"], surrogate=WIDE),
    "sapo": PolicyLossSpec(surrogate=Sapo(), aggregation=SEQUENCE),
    "gpg": presets["gpg"],
    "dro": PolicyLossSpec(surrogate=Dro(0.3)),
    "cispo": PolicyLossSpec(surrogate=Cispo(0.2, 0.28)),
    "geo_mean": PolicyLossSpec("sequence", Gmpo(0.2, 0.28), aggregation=SEQUENCE),
    "kl_cov": replace(presets["kl_cov"], control=KLCov(0.2, 0.7)),
    "kl_cov.weights": replace(presets["kl_cov"], control=KLCov(0.2, 0.7), correction=TIS),
    # old_logp == rollout_logp there: the ratio weighs the score function, capped
    "bypass.ppo_clip": PolicyLossSpec(surrogate=Clip(0.2, 0.28, dual=3.0)),
    "bypass.reinforce": PolicyLossSpec(surrogate=Cispo(1.0, 0.4)),
}  # fmt: skip


@pytest.mark.parametrize("name", VERL_LOSSES)
def test_verl_losses(name: str) -> None:
    loose = any(x in name for x in ("seq", "gspo", "sapo", "geo"))
    agree(VERL["losses"][name], VERL_LOSSES[name], 2e-8 if loose else 1e-12)


@pytest.mark.parametrize("name", ["clip_cov", "clip_cov.weights"])
def test_verl_clip_cov_with_its_own_draw(name: str) -> None:
    torch = pytest.importorskip("torch")
    control = ClipCov(0.2, -0.5, 2.0, scope="micro")
    spec = PolicyLossSpec(surrogate=WIDE, control=control)
    torch.manual_seed(7)
    agree(VERL["losses"][name], replace(spec, correction=TIS) if "." in name else spec)


@pytest.mark.parametrize("name", VERL["kl"])
def test_verl_kl(name: str) -> None:
    # verl's k3 is clamped
    estimator: Any = {"low_var_kl": "low_var", "k3": "low_var", "k3+": "low_var+"}.get(name, name)
    spec = replace(presets["entropy_only"], entropy=None, kl=KL(estimator, 1.0))
    agree(VERL["kl"][name], replace(spec, aggregation="token-sum"))


WEIGHTS = {
    "token": TIS,
    "sequence": Correction("sequence", high=1.2),
    "icepop": Correction("token", 0.8, 1.3, outside="zero"),
    "token.normalized": replace(TIS, normalize=True),
}


def correct(correction: Correction) -> Any:
    return rollout_weights(BATCH["old_logp"], BATCH["rollout_logp"], MASK, correction)


@pytest.mark.parametrize("name", WEIGHTS)
def test_verl_rollout_weights(name: str) -> None:
    weights = correct(WEIGHTS[name]).weights
    np.testing.assert_allclose(weights[MASK], np.array(VERL["weights"][name])[MASK], rtol=1e-8)


REJECTIONS = {
    "token_k1": (1.25, 0.8), "token_k2": (0.03,), "token_k3": (0.03,),
    "seq_sum_k1": (1.25, 0.8), "seq_sum_k2": (0.27,), "seq_sum_k3": (0.27,),
    "seq_mean_k1": (1 / 0.95,), "seq_mean_k2": (0.03,), "seq_mean_k3": (0.03,),
    "seq_max_k2": (0.1,), "seq_max_k3": (0.1,),
}  # fmt: skip


@pytest.mark.parametrize("measure", REJECTIONS)
def test_verl_rejection(measure: Any) -> None:
    kept = correct(Correction(None, reject=(Reject(measure, *REJECTIONS[measure]),))).keep
    theirs = np.array(VERL["kept"][measure])
    np.testing.assert_array_equal(kept[MASK], theirs[MASK])
    assert 0 < theirs[MASK].sum() < MASK.sum()


TRL_LOSSES = {
    "grpo": replace(presets["grpo"], surrogate=WIDE),
    "dr_grpo": replace(presets["dr_grpo"], surrogate=WIDE, max_length=32),
    "bnpo": replace(presets["bnpo"], surrogate=WIDE),
    "dapo": presets["dapo"],
    "sapo": presets["sapo"],
    "vespo": presets["vespo"],
    "gspo": replace(presets["gspo"], surrogate=WIDE),
    "luspo": replace(presets["luspo"], surrogate=WIDE),
    "cispo": PolicyLossSpec(surrogate=Cispo(1.0, 0.5)),
    "delta": PolicyLossSpec(surrogate=Clip(0.2, 0.28, dual=1.5), aggregation=SEQUENCE),
    "opsm": replace(
        presets["opsm"], surrogate=WIDE, control=OffPolicyMask(0.02, against="rollout")
    ),
    "weights": replace(presets["dapo"], correction=TIS),
    "kl": replace(presets["grpo"], surrogate=WIDE, kl=KL("k3", 0.1)),
    "kl.corrected": replace(presets["grpo"], surrogate=WIDE, kl=KL("k3", 0.1, "ratio")),
    "bonus": replace(presets["dapo"], entropy=EntropyBonus(0.3)),
}


@pytest.mark.parametrize("name", TRL_LOSSES)
def test_trl_losses(name: str) -> None:
    # TRL makes float32 of its two temperatures
    agree(TRL["losses"][name], TRL_LOSSES[name], 1e-6 if name == "sapo" else 1e-12)


def test_the_batch_reaches_every_branch() -> None:
    """Agreement would be hollow if nothing were clipped, masked or rejected."""
    metrics = ours(vanilla("token-mean")).metrics
    assert metrics["actor/pg_clipfrac"] > 0.1 and metrics["actor/pg_clipfrac_lower"] > 0.02
    opsm = TRL["losses"]["opsm"]["g_logp"]
    assert any(all(x == 0 for x in row) for row in opsm) and np.any(opsm)


# ---- where we differ on purpose


def test_geo_mean_over_micro_batches() -> None:
    """verl#7913: torch.mean per micro-batch, so two halves that verl sums give twice the loss."""
    spec = VERL_LOSSES["geo_mean"]
    whole, halves = (VERL["losses"][name]["loss"] for name in ("geo_mean", "geo_mean.halves"))
    totals = Totals(int(MASK.sum()), len(MASK))
    mine = sum(ours(spec, rows, totals=totals).loss for rows in (slice(0, 2), slice(2, 4)))
    assert mine == pytest.approx(whole, rel=2e-8)
    assert halves == pytest.approx(2 * whole, rel=1e-12)


def test_kl_cov_over_micro_batches() -> None:
    """verl#7829: each micro-batch penalises at least one token of its own choice."""
    spec = VERL_LOSSES["kl_cov"]
    ids = np.arange(MASK.size).reshape(MASK.shape)
    stats = batch_stats(
        BATCH["logp"], BATCH["advantages"], MASK, spec, token_ids=ids, seed=0, step=0
    )
    rows = (slice(0, 2), slice(2, 4))
    mine = sum(ours(spec, r, batch=stats, token_ids=ids[r]).loss for r in rows)
    theirs = {name: VERL["losses"][name]["loss"] for name in ("kl_cov", "kl_cov.halves")}
    assert mine == pytest.approx(theirs["kl_cov"], rel=1e-12)
    assert abs(theirs["kl_cov.halves"] - theirs["kl_cov"]) > 0.01 * abs(theirs["kl_cov"])
    # scope="micro" is verl's
    control: Any = spec.control
    micro = replace(spec, control=replace(control, scope="micro"))
    totals = Totals(int(MASK.sum()), len(MASK))
    assert sum(ours(micro, r, totals=totals).loss for r in rows) == pytest.approx(
        theirs["kl_cov.halves"], rel=1e-12
    )


def test_k1_bounds_are_the_right_way_round() -> None:
    """verl#6377: its k1 is -q, so bounds of 0.8 and 1.6 keep ratios of 1/1.6 to 1/0.8."""
    theirs = np.array(VERL["kept"]["token_k1.lopsided"])
    ratio = np.exp(BATCH["old_logp"] - BATCH["rollout_logp"])
    kept, swapped = (
        correct(Correction(None, reject=(Reject("token_k1", high, low),))).keep
        for low, high in ((0.8, 1.6), (1 / 1.6, 1 / 0.8))
    )
    np.testing.assert_array_equal(kept[MASK], ((ratio >= 0.8) & (ratio <= 1.6))[MASK])
    np.testing.assert_array_equal(swapped[MASK], theirs[MASK])
    assert (kept != theirs)[MASK].sum() >= 2


def test_normalized_sequence_weights_average_over_tokens() -> None:
    """verl averages the weights over sequences there, over tokens otherwise; ours over tokens."""
    theirs = np.array(VERL["weights"]["sequence.normalized"])
    mine = correct(replace(WEIGHTS["sequence"], normalize=True)).weights
    assert mine[MASK].mean() == pytest.approx(1.0, rel=1e-12)
    per_sequence = theirs.sum(axis=1) / MASK.sum(axis=1)
    assert per_sequence.mean() == pytest.approx(1.0, rel=1e-7)
    assert abs(theirs[MASK].mean() - 1.0) > 0.01
    np.testing.assert_allclose(mine[MASK] / mine[MASK][0], theirs[MASK] / theirs[MASK][0])


def test_top_entropy_counts_instead_of_interpolating() -> None:
    """TRL keeps what reaches an interpolated quantile; ours the k = int(0.4 n) largest.

    Of n = 24 tokens the quantile 0.6 lies between two of them, and TRL keeps one token more.
    """
    theirs = np.array(TRL["losses"]["top_entropy"]["g_logp"])
    spec = replace(presets["dapo"], control=TopEntropy(0.4))
    result = ours(spec)
    count = round(result.metrics["actor/cov_selected"] * MASK.sum())
    kept_by_trl = np.sort(BATCH["entropy"][MASK])[::-1]
    threshold = np.quantile(BATCH["entropy"][MASK], 0.6)
    assert count == int(0.4 * MASK.sum())
    assert (kept_by_trl >= threshold).sum() == count + 1
    more = ours(replace(spec, control=TopEntropy((count + 1) / MASK.sum() + 1e-9)))
    np.testing.assert_allclose(more.g_logp.reshape(MASK.shape), theirs, rtol=1e-12, atol=1e-14)


def test_bnpo_does_not_depend_on_micro_batches() -> None:
    """TRL divides by the tokens of each micro-batch: halves of 14 and 10 tokens weigh alike."""
    halves = sum(TRL["losses"]["bnpo.halves"]["losses"])
    whole = TRL["losses"]["bnpo"]["loss"]
    totals = Totals(int(MASK.sum()), len(MASK))
    spec = TRL_LOSSES["bnpo"]
    mine = sum(ours(spec, rows, totals=totals).loss for rows in (slice(0, 2), slice(2, 4)))
    assert mine == pytest.approx(whole, rel=1e-12)
    assert abs(halves - whole) > 1e-3
