"""metrics="means": a call reports its own means, as if it were the whole batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import logitless as ll
from logitless.ops.policy_loss import policy_loss
from tests.support.heads import batch as head_batch
from tests.support.losses.loss_outcomes import coefficients
from tests.support.losses.loss_specs import SPECS, make_batch
from tests.support.plans import APART, CHUNKS, LEAVES, force
from tests.support.tolerances import assert_bitwise_equal


@pytest.mark.parametrize("name", SPECS)
def test_a_call_alone_reports_the_same_either_way(name: str) -> None:
    spec, batch = SPECS[name], make_batch(70)
    if type(spec.control).__name__ == "ClipV":
        pytest.skip("it is never alone")
    shares, means = (
        coefficients(*batch.inputs, spec, metrics=x, **batch.optional)[1]
        for x in ("shares", "means")
    )
    assert shares.metrics == means.metrics and shares.loss == means.loss


@pytest.mark.parametrize("name", SPECS)
def test_means_of_micro_batches(name: str) -> None:
    """Shares are means times the part of the batch that a call has."""
    spec, batch = SPECS[name], make_batch(71)
    spec = replace(spec, max_length=77) if "seq-mean-token-sum-norm" in spec.aggregations else spec
    stats = ll.batch_stats(
        batch.logp, batch.advantages, batch.mask, spec, old_logp=batch.old_logp,
        entropy=batch.entropy, entropy_change=batch.entropy_change,
        rollout_logp=batch.rollout_logp, token_ids=batch.token_ids, seed=0, step=0,
    )  # fmt: skip
    part = batch.rows([1, 4, 5])
    shares, means = (
        coefficients(*part.inputs, spec, metrics=x, batch=stats, **part.optional)[1]
        for x in ("shares", "means")
    )
    assert shares.loss == means.loss
    np.testing.assert_array_equal(shares.g_logp, means.g_logp)
    tokens = part.mask.sum() / batch.mask.sum()
    sequences = part.mask.any(1).sum() / batch.mask.any(1).sum()

    def part_of(aggregation: str) -> Any:
        return {"token-mean": tokens, "token-sum": 1.0}.get(aggregation, sequences)

    how = {"actor/pg_loss": part_of(spec.aggregation)}
    own = spec.aggregation if spec.kl is None or spec.kl.aggregation is None else (
        spec.kl.aggregation
    )  # fmt: skip
    how["actor/kl_loss"] = part_of(own)
    selected = getattr(spec.control, "normaliser", "all") == "selected"
    for key, share in shares.metrics.items():
        if key == "actor/pg_loss" and selected:
            continue
        assert share == pytest.approx(means.metrics[key] * how.get(key, tokens), rel=1e-12), key


def test_totals_and_torch() -> None:
    """A clip fraction is that of the call, whatever the batch counts."""
    batch = make_batch(72)
    totals = ll.Totals(10 * int(batch.mask.sum()), 100)
    arrays = [torch.from_numpy(np.ascontiguousarray(x)) for x in batch.inputs]
    alone = ll.policy_loss(*arrays, SPECS["grpo"]).metrics
    for inputs in (batch.inputs, arrays):
        found = ll.policy_loss(*inputs, SPECS["grpo"], totals=totals, metrics="means").metrics
        assert alone.keys() - found.keys() == {"actor/cov_mean"}
        for key, value in found.items():
            assert float(value) == pytest.approx(float(alone[key]), rel=1e-6), key


def test_no_token() -> None:
    x, mask = np.zeros((2, 3)), np.zeros((2, 3), bool)
    out = policy_loss(x, x, x, mask, SPECS["grpo"], totals=ll.Totals(9, 3), metrics="means")
    assert set(map(float, out.metrics.values())) == {0.0}


@pytest.mark.parametrize("way", [APART, *CHUNKS.values()], ids=["apart", *CHUNKS])
@pytest.mark.parametrize("name", ["own_entropy", "own_kl", "own_terms"])
def test_the_head(monkeypatch: pytest.MonkeyPatch, way: Any, name: str) -> None:
    """Terms with their own aggregation, and means, on every way of the head."""
    data, spec = head_batch(41), SPECS[name]
    totals = ll.Totals(100, 9)
    # what no chunk of rows can do alone
    spec = replace(spec, control=None, ratio="token")
    more = {"ref_logp": data["old_logp"] - 0.1, "totals": totals, "metrics": "means"}
    found = []
    for strategy in (APART, way):
        force(monkeypatch, strategy)
        mine = {k: v.detach().requires_grad_() if k in LEAVES else v for k, v in data.items()}
        out = ll.linear_policy_loss(**mine, spec=spec, **more)
        found.append((out, torch.autograd.grad(out.loss, [mine[k] for k in LEAVES])))
    (expected, right), (out, gradients) = found
    torch.testing.assert_close(out.loss, expected.loss, rtol=1e-5, atol=1e-6)
    for key, value in out.metrics.items():
        torch.testing.assert_close(value, expected.metrics[key], rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    if way is APART:
        assert_bitwise_equal(out.loss, expected.loss)
