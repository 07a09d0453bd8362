"""EntroPIC: a mean over the likely tokens of the batch in any split; its coefficient is data."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from logitless.loss.evaluate.inputs import BatchStats, Totals
from logitless.loss.spec import Entropic, PolicyLossSpec, Reinforce, Unclipped
from logitless.loss.spec.presets import presets
from logitless.ops.batch_stats import batch_stats
from logitless.ops.policy_loss import policy_loss
from tests.support.losses.loss_outcomes import coefficients
from tests.support.losses.loss_specs import SPECS, Batch, make_batch
from tests.support.paths import TESTS

GOLDEN = json.loads((TESTS / "golden" / "entropy_control.json").read_text())["losses"]


def stats_of(batch: Batch, spec: PolicyLossSpec) -> BatchStats:
    return batch_stats(
        batch.logp, batch.advantages, batch.mask, spec, old_logp=batch.old_logp,
        token_ids=batch.token_ids, seed=0, step=0,
    )  # fmt: skip


@pytest.mark.parametrize("number", range(len(GOLDEN)))
def test_the_authors_numbers(number: int) -> None:
    arrays = ("logp", "old_logp", "advantages", "mask")
    case, expected = GOLDEN[number], GOLDEN[number]["entropic"]
    control = Entropic(expected["coefficient"], expected["threshold"])
    spec = replace(presets["entropic"], control=control)
    data = [np.array(case[k]) for k in arrays]
    _, found = coefficients(*data, spec)
    assert found.loss == pytest.approx(expected["loss"], rel=1e-12)
    g = np.where(data[-1], expected["grad"], 0.0)
    np.testing.assert_allclose(found.g_logp, g.ravel(), rtol=1e-12, atol=1e-16)


def test_by_hand() -> None:
    """Of four tokens two are likely: each has half of the mean, beside a quarter of the other."""
    logp, a = np.log([0.97, 0.5, 0.96, 0.951]), np.array([2.0, 1.0, -4.0, 8.0])
    old, mask = np.log([0.97, 0.25, 0.48, 0.9]), np.array([True, True, True, False])
    spec = PolicyLossSpec(surrogate=Unclipped(), control=Entropic(0.5, 0.95))
    _, found = coefficients(logp, old, a, mask, spec)
    r = np.array([1.0, 2.0, 2.0])
    plain, likely = -a[:3] * r / 3, np.array([2.0, 0.0, 8.0]) / 2
    np.testing.assert_allclose(found.g_logp, [*(plain - 0.5 * likely), 0.0], rtol=1e-14)
    assert found.loss == pytest.approx(float((plain - 0.5 * likely).sum()), rel=1e-14)
    assert found.metrics["actor/pg_loss"] == pytest.approx(found.loss, rel=1e-14)
    score = replace(spec, ratio="none", surrogate=Reinforce())
    _, found = coefficients(logp, None, a, mask, score)
    np.testing.assert_allclose(found.g_logp, [-2 / 3 - 0.5, -1 / 3, 4 / 3 - 1.0, 0.0], rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_order_and_split_change_no_bit_of_the_share(dtype: Any) -> None:
    batch, spec = make_batch(70, shape=(8, 40), dtype=dtype), SPECS["entropic_falls"]
    whole = stats_of(batch, spec).likely
    likely = batch.logp[batch.mask].astype(np.float64) > math.log(0.4)
    assert whole == likely.sum() / likely.size and 0.1 < whole < 0.9
    pieces = [batch.rows([i]) for i in np.random.default_rng(1).permutation(8)]
    names = ("old_logp", "token_ids")
    lists = {k: [getattr(x, k) for x in pieces] for k in names}
    parts = [[getattr(x, k) for x in pieces] for k in ("logp", "advantages", "mask")]
    assert batch_stats(*parts, spec, **lists, seed=0, step=0).likely == whole


def test_the_coefficient_is_data() -> None:
    """The loss and its gradient are straight lines in it, and every value is one loss to caches."""
    batch, spec = make_batch(71), presets["entropic"]
    values = (0.0, -1.0, 0.5)
    specs = [replace(spec, control=Entropic(x, 0.5)) for x in values]
    assert len({x.identity for x in specs}) == 1 and specs[1].identity.control == Entropic(0.0, 0.5)
    found = [coefficients(*batch.inputs, x)[1] for x in specs]
    assert found[1].loss != found[0].loss
    line = found[0].loss - 0.5 * (found[1].loss - found[0].loss)
    assert found[2].loss == pytest.approx(line, rel=1e-12)
    slopes = [x.g_logp for x in found]
    np.testing.assert_allclose(slopes[2], 1.5 * slopes[0] - 0.5 * slopes[1], atol=1e-15)
    _, plain = coefficients(*batch.inputs, replace(spec, control=None))
    assert found[0].loss == plain.loss
    np.testing.assert_array_equal(found[0].g_logp, plain.g_logp)


def test_micro_has_a_mean_of_each_call() -> None:
    """The authors' mean over a micro-batch, weighed by the micro-batch's share of the tokens."""
    batch, spec = make_batch(72), SPECS["entropic_falls"]
    micro = replace(spec, control=Entropic(0.7, 0.4, scope="micro"))
    assert spec.needs_means and not micro.needs_means and micro.surveys_call
    totals = Totals(int(batch.mask.sum()), 5)
    for rows in ([0, 1], [2, 3, 4], [5]):
        part = batch.rows(rows)
        _, alone = coefficients(*part.inputs, spec, **part.optional)
        _, found = coefficients(*part.inputs, micro, **part.optional, totals=totals)
        share = part.mask.sum() / batch.mask.sum()
        np.testing.assert_allclose(found.g_logp, alone.g_logp * share, rtol=1e-12)
    with pytest.raises(ValueError, match=r"spec.control=Entropic.*pass batch=batch_stats"):
        policy_loss(*batch.inputs, spec, entropy=batch.entropy, totals=totals)


def test_no_token_is_likely() -> None:
    """No term, and no division by none; a token that became likely since then has one."""
    batch = make_batch(73)
    spec = replace(presets["entropic"], control=Entropic(1.0, 0.4))
    rare = replace(batch, logp=batch.logp - 5.0)
    stats = stats_of(rare, spec)
    assert stats.likely == 0.0
    _, none = coefficients(*rare.inputs, spec, token_ids=rare.token_ids, batch=stats)
    _, plain = coefficients(*rare.inputs, replace(spec, control=None))
    np.testing.assert_array_equal(none.g_logp, plain.g_logp)
    _, some = coefficients(*batch.inputs, spec, token_ids=batch.token_ids, batch=stats)
    assert np.isfinite(some.g_logp).all()


def test_what_multiplies_the_policy_term_multiplies_the_push() -> None:
    batch, spec = make_batch(74), SPECS["entropic_inference"]
    optional = {k: x for k, x in batch.optional.items() if k in ("rollout_logp", "token_ids")}
    weights = np.where(batch.mask, np.arange(batch.mask.size).reshape(batch.mask.shape) % 3, 0.0)
    _, plain = coefficients(*batch.inputs, spec, **optional)
    _, found = coefficients(*batch.inputs, spec, **optional, weights=weights)
    np.testing.assert_allclose(found.g_logp, plain.g_logp * weights.ravel(), rtol=1e-13)
