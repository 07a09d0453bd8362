"""SIREN: a square of the batch's mean whose sum over calls is the square, and its anchor."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import logitless as ll
from logitless.loss.evaluate.inputs import BatchStats, Totals
from logitless.loss.spec import NoPolicy, PolicyLossSpec, Siren
from logitless.loss.spec.presets import presets
from logitless.ops.batch_stats import batch_stats
from logitless.ops.policy_loss import policy_loss
from tests.support.losses.loss_outcomes import coefficients
from tests.support.losses.loss_specs import SPECS, Batch, make_batch
from tests.support.paths import TESTS

ALONE = PolicyLossSpec("none", NoPolicy(), entropy=Siren(0.5, 1.0))


GOLDEN = json.loads((TESTS / "golden" / "entropy_control.json").read_text())["losses"]


def stats_of(batch: Batch, spec: PolicyLossSpec, **options: Any) -> BatchStats:
    return batch_stats(
        batch.logp, batch.advantages, batch.mask, spec,
        **{"old_logp": batch.old_logp, "entropy": batch.entropy, "token_ids": batch.token_ids,
           "seed": 0, "step": 0, **options},
    )  # fmt: skip


@pytest.mark.parametrize("number", range(len(GOLDEN)))
def test_the_authors_numbers(number: int) -> None:
    case, expected = GOLDEN[number], GOLDEN[number]["siren"]
    h, mask = np.array(case["entropy"]), np.array(case["mask"])
    zeros = np.zeros(h.shape)
    term = Siren(0.005, expected["anchor"], expected["quantile"])
    spec = replace(ALONE, entropy=term)
    _, found = coefficients(zeros, None, zeros, mask, spec, entropy=h)
    assert found.loss == pytest.approx(expected["loss"], rel=1e-12)
    np.testing.assert_allclose(found.g_entropy, np.ravel(expected["grad"]), rtol=1e-12, atol=1e-17)
    stats = batch_stats(
        zeros, zeros, mask, spec, entropy=h, token_ids=np.arange(h.size).reshape(h.shape), seed=0,
        step=0,
    )  # fmt: skip
    assert stats.selected_entropy == pytest.approx(expected["mean"], rel=1e-12)


def test_by_hand() -> None:
    """Of 6 tokens the 0.8 quantile is the fifth: one is above it. Of 5 it lies between the fourth
    and the fifth, of 1 it is the token itself: a mean of 0."""
    rows = [[1.0, 2.0, 3.0, 6.0, 4.0, 5.0], [2.0, 2.0, 9.0, 2.0, 3.0, np.nan], [7.0] + [np.nan] * 5]
    h = np.array(rows)
    mask = ~np.isnan(h)
    zeros = np.zeros(h.shape)
    _, found = coefficients(zeros, None, zeros, mask, ALONE, entropy=h)
    mean = (6.0 + 9.0 + 0.0) / 3
    assert found.loss == pytest.approx(0.5 * (mean - 1.0) ** 2, rel=1e-14)
    slope = np.zeros(h.shape)
    slope[0, 3] = slope[1, 2] = 2 * 0.5 * (mean - 1.0) / 3
    np.testing.assert_allclose(found.g_entropy, slope.ravel(), rtol=1e-14)
    assert not found.g_logp.any()
    # of equal ones none is above
    equal = np.full(h.shape, 2.0)
    _, found = coefficients(zeros, None, zeros, mask, ALONE, entropy=equal)
    assert found.loss == 0.5 and not found.g_entropy.any()


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.8, 0.95])
def test_the_chosen_are_those_above_an_interpolated_quantile(quantile: float) -> None:
    """As the authors choose, by NumPy's quantile, which interpolates as torch's does."""
    rng = np.random.default_rng(3)
    for n in range(1, 40):
        h = rng.exponential(size=(1, n)).round(1)
        zeros, mask = np.zeros((1, n)), np.ones((1, n), bool)
        spec = replace(ALONE, entropy=Siren(0.5, 0.0, quantile))
        _, found = coefficients(zeros, None, zeros, mask, spec, entropy=h)
        np.testing.assert_array_equal(found.g_entropy > 0, h[0] > np.quantile(h, quantile) + 1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_order_and_split_change_no_bit_of_the_mean(dtype: Any) -> None:
    batch, spec = make_batch(80, shape=(9, 40), dtype=dtype), SPECS["siren_high"]
    whole = stats_of(batch, spec).selected_entropy
    pieces = [batch.rows([i]) for i in np.random.default_rng(1).permutation(9)]
    names = ("old_logp", "token_ids", "entropy")
    lists = {k: [getattr(x, k) for x in pieces] for k in names}
    parts = [[getattr(x, k) for x in pieces] for k in ("logp", "advantages", "mask")]
    assert batch_stats(*parts, spec, **lists, seed=0, step=0).selected_entropy == whole
    means = [
        np.mean(h[h > np.quantile(h, 0.6)])
        for row, m in zip(batch.entropy.astype(np.float64), batch.mask, strict=True)
        if len(h := row[m]) > 1
    ]
    sequences = int(batch.mask.any(1).sum())
    assert whole == pytest.approx(sum(means) / sequences, rel=1e-12)


def test_the_first_step_has_no_term() -> None:
    batch, spec = make_batch(81), presets["siren"]
    _, found = coefficients(*batch.inputs, spec, **batch.optional)
    _, plain = coefficients(*batch.inputs, replace(spec, entropy=None))
    assert found.loss == plain.loss and not found.g_entropy.any()
    np.testing.assert_array_equal(found.g_logp, plain.g_logp)
    # and so has one whose anchor is its own mean, which the anchor then keeps
    anchor, stats = ll.EntropyAnchor(), stats_of(batch, replace(spec, max_length=20))
    held = replace(spec, entropy=Siren(anchor=anchor.update(stats.selected_entropy)))
    _, found = coefficients(*batch.inputs, held, **batch.optional)
    assert found.loss == pytest.approx(plain.loss, rel=1e-14)
    assert np.abs(found.g_entropy).max() < 1e-16
    assert anchor.update(9.0) == stats.selected_entropy


def test_where_the_policy_has_moved_the_loss_is_the_tangent() -> None:
    """The value and gradient at another entropy than the batch was looked at."""
    batch = make_batch(82)
    moved = np.where(batch.mask, 1.3 * batch.entropy, np.nan)
    term = Siren(0.5, 1.0)
    spec = replace(ALONE, entropy=term)
    stats = stats_of(batch, spec)
    zeros = np.zeros(batch.mask.shape)
    _, found = coefficients(
        zeros, None, zeros, batch.mask, spec, entropy=moved, batch=stats, token_ids=batch.token_ids
    )
    then, now = stats.selected_entropy, 1.3 * stats.selected_entropy
    tangent = 0.5 * (then - 1.0) ** 2 + 2 * 0.5 * (then - 1.0) * (now - then)
    assert found.loss == pytest.approx(tangent, rel=1e-12)


def test_the_coefficient_is_data_and_grad_scale_scales_all() -> None:
    batch = make_batch(83)
    specs = [replace(SPECS["siren_low"], entropy=Siren(x, 3.0)) for x in (0.0, 0.2, 0.4)]
    assert len({x.identity for x in specs}) == 1
    found = [coefficients(*batch.inputs, x, **batch.optional)[1] for x in specs]
    assert found[2].loss - found[1].loss == pytest.approx(found[1].loss - found[0].loss, rel=1e-10)
    np.testing.assert_allclose(found[2].g_entropy, 2 * found[1].g_entropy, rtol=1e-13)
    _, scaled = coefficients(*batch.inputs, specs[2], **batch.optional, grad_scale=4.0)
    assert scaled.loss == pytest.approx(4 * found[2].loss, rel=1e-13)
    np.testing.assert_allclose(scaled.g_entropy, 4 * found[2].g_entropy, rtol=1e-13)


def test_micro_has_a_square_of_each_call() -> None:
    batch, spec = make_batch(84), replace(ALONE, entropy=Siren(0.5, 3.0))
    micro = replace(spec, entropy=Siren(0.5, 3.0, scope="micro"))
    assert spec.needs_means and not micro.needs_means and micro.surveys_call
    totals = Totals(int(batch.mask.sum()), int(batch.mask.any(1).sum()))
    for rows in ([0, 1], [2, 3, 4], [5]):
        part = batch.rows(rows)
        _, alone = coefficients(*part.inputs, spec, **part.optional)
        _, found = coefficients(*part.inputs, micro, **part.optional, totals=totals)
        share = part.mask.any(1).sum() / totals.sequences
        assert found.loss == pytest.approx(alone.loss * share, rel=1e-12)
        np.testing.assert_allclose(found.g_entropy, alone.g_entropy * share, rtol=1e-12)


def test_a_cut_sequence_is_an_error() -> None:
    batch = make_batch(86)
    stats = stats_of(batch, ALONE)
    piece = Batch(**{k: x[:, :5] for k, x in vars(batch).items()})
    with pytest.raises(ValueError, match="needs each sequence whole in one call, got one cut"):
        policy_loss(*piece.inputs, ALONE, **piece.optional, batch=stats)


def test_what_is_missing_is_named() -> None:
    batch, spec = make_batch(85), replace(presets["siren"], max_length=20)
    totals = Totals(int(batch.mask.sum()), int(batch.mask.any(1).sum()))
    with pytest.raises(ValueError, match=r"spec.entropy=Siren.*pass batch=batch_stats"):
        policy_loss(*batch.inputs, spec, entropy=batch.entropy, totals=totals)
    with pytest.raises(ValueError, match=r"spec.entropy=Siren.* needs entropy, got entropy=None"):
        stats_of(batch, spec, entropy=None)
    with pytest.raises(ValueError, match=r"entropy must be given with spec.entropy=Siren"):
        policy_loss(*batch.inputs, spec)
    packed = {k: x.ravel() for k, x in vars(batch).items()}
    with pytest.raises(ValueError, match="needs padded"):
        stats_of(Batch(**packed), replace(ALONE))
