"""Without old_logp a call is on-policy: bit for bit what it is with its own logp as the old one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import logitless as ll
from logitless import reference
from logitless.loss.spec import PolicyLossSpec
from logitless.ops.policy_loss import policy_loss
from tests.support.device.waits import NothingIsRead
from tests.support.heads import batch as head_batch
from tests.support.heads import inputs_of, spec_of
from tests.support.losses.loss_calls import ours, tensors, with_grad
from tests.support.losses.loss_outcomes import coefficients
from tests.support.losses.loss_specs import SPECS, Batch, make_batch
from tests.support.losses.tensor_tokens import TensorTokens
from tests.support.plans import APART, CHUNKS, LEAVES, force
from tests.support.tolerances import assert_bitwise_equal


def stats_of(batch: Batch, spec: PolicyLossSpec, **packing: Any) -> ll.BatchStats:
    return ll.batch_stats(
        batch.logp, batch.advantages, batch.mask, spec, entropy=batch.entropy,
        entropy_change=batch.entropy_change, rollout_logp=batch.rollout_logp,
        token_ids=batch.token_ids, seed=3, step=4, **packing,
    )  # fmt: skip


def known(batch: Batch, spec: PolicyLossSpec) -> list[dict[str, Any]]:
    """With what the batch is known from: its statistics, and where that is enough the call."""
    alone = [] if type(spec.control).__name__ == "ClipV" else [{}]
    return [*alone, {"batch": stats_of(batch, spec)}]


def same_metrics(out: dict[str, Any], expected: dict[str, Any], spec: PolicyLossSpec) -> None:
    """A loss that has no old policy is not told of one."""
    mine = "old_logp" in spec.needs or spec.ratio == "inference"
    assert out.keys() ^ expected.keys() == (set() if mine else {"actor/ppo_kl"})
    for name in out:
        assert float(out[name]) == float(expected[name]), name
    if "actor/ppo_kl" in out and spec.ratio != "inference":
        assert float(out["actor/ppo_kl"]) == 0.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", SPECS)
def test_policy_loss(name: str, dtype: Any) -> None:
    """NumPy's values, and torch's with their gradients."""
    spec, batch = SPECS[name], make_batch(30, dtype=dtype)
    spec = replace(spec, max_length=20) if "norm" in spec.aggregation else spec
    t = tensors(batch)
    for options in known(batch, spec):
        _, old, *rest = batch.inputs
        both = [
            policy_loss(batch.logp, x, *rest, spec, **batch.optional, **options)
            for x in (None, batch.logp)
        ]
        assert both[0].loss == both[1].loss and np.isfinite(both[0].loss)
        same_metrics(both[0].metrics, both[1].metrics, spec)
        if options:
            options = {"batch": options["batch"]._replace(
                selected=torch.from_numpy(options["batch"].selected),
                sequences=torch.from_numpy(options["batch"].sequences),
            )}  # fmt: skip
        calls = []
        for old in (None, t["logp"]):
            mine = with_grad({**t, "old_logp": t["logp"]})
            out = ours({**mine, "old_logp": old}, spec, **options)
            out.loss.backward()
            calls.append((out, mine["logp"].grad, mine["entropy"].grad))
        (first, *grads), (second, *others) = calls
        assert torch.equal(first.loss, second.loss)
        same_metrics(first.metrics, second.metrics, spec)
        for a, b in zip(grads, others, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                assert_bitwise_equal(a, b)


@pytest.mark.parametrize("name", SPECS)
def test_the_oracle_and_packed_tokens(name: str) -> None:
    spec, batch = SPECS[name], make_batch(31)
    if spec.aggregation == "seq-mean-token-sum-norm":
        spec = replace(spec, max_length=20)
    flat, cu_seqlens = batch.packed()
    packing: dict[str, Any] = {"cu_seqlens": cu_seqlens}
    oracle = {**packing, **flat.optional, "entropy_change": flat.entropy_change}
    loss, metrics, g_logp, g_entropy = reference.policy_loss(
        flat.logp, None, *flat.inputs[2:], spec, **oracle
    )
    if type(spec.control).__name__ == "ClipV":
        packing["batch"] = ll.batch_stats(
            flat.logp, *flat.inputs[2:], spec, entropy_change=flat.entropy_change,
            token_ids=flat.token_ids, cu_seqlens=cu_seqlens, seed=0, step=0,
        )  # fmt: skip
    _, found = coefficients(flat.logp, None, *flat.inputs[2:], spec, **flat.optional, **packing)
    assert found.loss == pytest.approx(loss, rel=1e-12, abs=1e-14)
    np.testing.assert_allclose(found.g_logp, g_logp, rtol=1e-12, atol=1e-16)
    if found.g_entropy is not None:
        np.testing.assert_allclose(found.g_entropy, g_entropy, rtol=1e-12, atol=1e-16)
    shared = found.metrics.keys() & metrics.keys()
    assert {k: found.metrics[k] for k in shared} == pytest.approx(
        {k: metrics[k] for k in shared}, rel=1e-12, abs=1e-14
    )


@pytest.mark.parametrize("name", ["grpo", "gspo", "kl_ratio", "many_kl_cov", "correction_tis"])
def test_the_arrays_of_a_device(name: str) -> None:
    batch = make_batch(32, dtype=np.float32)
    data = [batch.logp, None, *batch.inputs[2:]]
    _, expected = coefficients(*data, SPECS[name], **batch.optional)
    there = {k: torch.from_numpy(x) for k, x in batch.optional.items()}
    arrays = [None if x is None else torch.from_numpy(np.ascontiguousarray(x)) for x in data]
    with NothingIsRead():
        _, out = coefficients(*arrays, SPECS[name], kernels=TensorTokens(), **there)
    assert out.loss == pytest.approx(expected.loss, rel=1e-12, abs=1e-15)
    np.testing.assert_allclose(out.g_logp.numpy(), expected.g_logp, rtol=3e-7, atol=1e-12)


def test_the_ratio_is_1_and_keeps_its_gradient() -> None:
    """By hand: the loss is -mean A, its slope -A / n."""
    logp = torch.tensor([-1.0, -2.0, -3.0, -4.0], requires_grad=True)
    a, mask = torch.tensor([1.0, -2.0, 0.5, 9.0]), torch.tensor([True, True, True, False])
    out = ll.policy_loss(logp, None, a, mask, ll.presets["ppo"])
    out.loss.backward()
    assert float(out.loss.detach()) == pytest.approx(0.5 / 3)
    torch.testing.assert_close(logp.grad, torch.where(mask, -a / 3, 0.0))
    assert float(out.metrics["actor/pg_clipfrac"]) == 0.0


def head_call(
    data: dict[str, Any], old_logp: Any, spec: PolicyLossSpec, **options: Any
) -> tuple[Any, tuple[Any, ...]]:
    data = {k: v.detach().requires_grad_() if k in LEAVES else v for k, v in data.items()}
    out = ll.linear_policy_loss(**{**data, "old_logp": old_logp}, spec=spec, **options)
    return out, torch.autograd.grad(out.loss, [data[k] for k in LEAVES])


@pytest.mark.parametrize("name", SPECS)
def test_linear_policy_loss(name: str) -> None:
    spec, data = spec_of(name), head_batch(13)
    options = inputs_of(spec, data)
    out, gradients = head_call(data, None, spec, **options)
    again, others = head_call(data, out.logp, spec, **options)
    assert torch.equal(out.loss, again.loss)
    same_metrics(out.metrics, again.metrics, spec)
    for a, b in zip(gradients, others, strict=True):
        assert_bitwise_equal(a, b)


@pytest.mark.parametrize("way", [APART, *CHUNKS.values(), None], ids=["apart", *CHUNKS, "own"])
def test_every_way_of_the_head(monkeypatch: pytest.MonkeyPatch, way: Any) -> None:
    """A chunk's old log-probs are those that it has just made."""
    data = head_batch(14)
    spec = replace(ll.presets["dapo"], kl=ll.KL("k3", 0.1, "ratio", "old"))
    if way is not None:
        force(monkeypatch, way)
    ways: list[dict[str, Any]] = [{"tail_mass": 0.05}, {"batch_invariant": True}]
    for options in [{}] if way else ways:
        out, gradients = head_call(data, None, spec, **options)
        again, others = head_call(data, out.logp, spec, **options)
        assert torch.equal(out.loss, again.loss)
        for a, b in zip(gradients, others, strict=True):
            assert a.abs().max() > 0
            assert_bitwise_equal(a, b)


def test_numpy_values_of_the_head() -> None:
    data = {k: v.numpy() for k, v in head_batch(15).items()}
    out = ll.linear_policy_loss(**{**data, "old_logp": None}, spec=ll.presets["grpo"])
    again = ll.linear_policy_loss(**{**data, "old_logp": out.logp}, spec=ll.presets["grpo"])
    assert out.loss == again.loss and out.metrics == again.metrics
