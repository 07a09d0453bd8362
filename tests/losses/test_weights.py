"""Given weights: a factor of each token's policy term, and of nothing else."""

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
from tests.support.losses.loss_specs import SPECS, Batch, chosen, make_batch
from tests.support.losses.plain_losses import plain_loss
from tests.support.losses.tensor_tokens import TensorTokens
from tests.support.plans import APART, CHUNKS, LEAVES, force
from tests.support.tolerances import assert_gradients, assert_values


def weights_of(batch: Batch, seed: int = 7) -> Any:
    """A third of them 0; NaN outside the mask."""
    rng = np.random.default_rng(seed)
    w = rng.exponential(size=batch.mask.shape) * (rng.random(batch.mask.shape) > 0.3)
    return np.where(batch.mask, w, np.nan).astype(batch.logp.dtype)


def stats_of(batch: Batch, spec: PolicyLossSpec, **packing: Any) -> ll.BatchStats:
    return ll.batch_stats(
        batch.logp, batch.advantages, batch.mask, spec, old_logp=batch.old_logp,
        entropy=batch.entropy, entropy_change=batch.entropy_change,
        rollout_logp=batch.rollout_logp, token_ids=batch.token_ids, seed=0, step=0, **packing,
    )  # fmt: skip


def needed(batch: Batch, spec: PolicyLossSpec) -> dict[str, Any]:
    return {"batch": stats_of(batch, spec)} if type(spec.control).__name__ == "ClipV" else {}


@pytest.mark.parametrize("name", SPECS)
def test_against_the_oracle(name: str) -> None:
    spec, batch = SPECS[name], make_batch(40)
    w = weights_of(batch)
    loss, metrics, g_logp, g_entropy = reference.policy_loss(
        *batch.inputs, spec, weights=w, entropy_change=batch.entropy_change, **batch.optional
    )
    _, found = coefficients(*batch.inputs, spec, weights=w, **batch.optional, **needed(batch, spec))
    assert found.loss == pytest.approx(loss, rel=1e-12, abs=1e-14)
    mine = {k: x for k, x in found.metrics.items() if k.startswith("actor/")}
    assert mine == pytest.approx(metrics, rel=1e-12, abs=1e-14)
    np.testing.assert_allclose(found.g_logp, g_logp.ravel(), rtol=1e-12, atol=1e-16)
    if found.g_entropy is not None:
        np.testing.assert_allclose(found.g_entropy, g_entropy.ravel(), rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("name", SPECS)
def test_against_autograd_of_the_plain_formula(name: str) -> None:
    spec, batch = SPECS[name], make_batch(41)
    t = {**tensors(batch), "weights": torch.from_numpy(weights_of(batch))}
    selected = torch.from_numpy(np.isin(batch.token_ids, chosen(batch, spec)))
    known = needed(batch, spec)
    if known:
        known["batch"] = known["batch"]._replace(
            selected=torch.from_numpy(known["batch"].selected),
            sequences=torch.from_numpy(known["batch"].sequences),
        )
    plain, mine = with_grad(t), with_grad(t)
    expected = plain_loss(plain, spec, selected)
    out = ours(mine, spec, weights=t["weights"], **known)
    torch.testing.assert_close(out.loss, expected, rtol=1e-12, atol=1e-14)
    expected.backward()
    out.loss.backward()
    for leaf in ("logp", "entropy"):
        wanted, got = plain[leaf].grad, mine[leaf].grad
        if got is None or wanted is None:
            assert got is None or (got == 0).all()
            continue
        torch.testing.assert_close(got[t["mask"]], wanted[t["mask"]], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["ppo", "gspo", "kl_ratio", "narrow_gmpo"])
def test_finite_differences(name: str) -> None:
    batch = make_batch(42, shape=(3, 4))
    t = {k: x.nan_to_num() if x.is_floating_point() else x for k, x in tensors(batch).items()}
    w = torch.from_numpy(weights_of(batch))

    def f(logp: Any) -> Any:
        return ours({**t, "logp": logp}, SPECS[name], weights=w).loss

    assert torch.autograd.gradcheck(f, t["logp"].clone().requires_grad_(), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", SPECS)
def test_micro_batches_add_up(name: str) -> None:
    spec, batch = SPECS[name], make_batch(43)
    spec = replace(spec, max_length=77) if "norm" in spec.aggregation else spec
    w, stats = weights_of(batch), stats_of(batch, spec)
    _, whole = coefficients(*batch.inputs, spec, weights=w, batch=stats, **batch.optional)
    parts = []
    for which in ([5, 0], [1], [4, 2, 3]):
        p = batch.rows(which)
        parts.append(coefficients(*p.inputs, spec, weights=w[which], batch=stats, **p.optional)[1])
    assert sum(x.loss for x in parts) == pytest.approx(whole.loss, rel=1e-12, abs=1e-15)
    for key, value in whole.metrics.items():
        assert sum(x.metrics[key] for x in parts) == pytest.approx(value, rel=1e-12, abs=1e-15)
    together = np.concatenate([x.g_logp for x in parts]).reshape(batch.mask.shape)
    np.testing.assert_allclose(
        together, whole.g_logp.reshape(batch.mask.shape)[[5, 0, 1, 4, 2, 3]], rtol=1e-13
    )


def test_the_normaliser_counts_tokens_and_not_weights() -> None:
    """With totals, too: a weight of 0 is a token still."""
    batch = make_batch(44)
    zeros = np.where(batch.mask, 0.0, np.nan)
    zeros[np.nonzero(batch.mask)[0][0]] = 1.0
    totals = ll.Totals(1000, 10)
    out = policy_loss(*batch.inputs, ll.presets["ppo"], weights=zeros, totals=totals)
    first = np.where(np.arange(len(zeros))[:, None] == np.nonzero(batch.mask)[0][0], 1.0, 0.0)
    alone = policy_loss(
        *batch.inputs[:3], batch.mask & (first > 0), ll.presets["ppo"], totals=totals
    )
    assert out.loss == pytest.approx(alone.loss, rel=1e-12)
    with pytest.raises(ValueError, match="totals must count"):
        policy_loss(*batch.inputs, ll.presets["ppo"], weights=zeros, totals=ll.Totals(3, 1))


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_weights_of_sequences(packed: bool) -> None:
    batch = make_batch(45)
    w = np.random.default_rng(3).exponential(size=len(batch.mask))
    per_token = np.broadcast_to(w[:, None], batch.mask.shape)
    packing: dict[str, Any] = {}
    flat = batch
    if packed:
        flat, packing["cu_seqlens"] = batch.packed()
        per_token = np.repeat(w, np.diff(packing["cu_seqlens"]))
    outs = [
        policy_loss(*flat.inputs, ll.presets["gspo"], weights=x, **packing)
        for x in (per_token, w, w[:, None])
    ]
    assert outs[0].loss == outs[1].loss == outs[2].loss
    with pytest.raises(ValueError, match=r"weights must be shaped like logp.*per sequence.*\[5\]"):
        policy_loss(*flat.inputs, ll.presets["gspo"], weights=w[:5], **packing)


@pytest.mark.parametrize("name", ["k3", "many_kl_cov", "many_top_entropy", "correction_tis"])
def test_all_ones_and_all_zeros(name: str) -> None:
    """Ones change no coefficient. Zeros leave the KL and entropy terms, and every metric but
    actor/pg_loss."""
    spec, batch = SPECS[name], make_batch(46)
    one = np.where(batch.mask, 1.0, np.nan)
    plain, ones, zeros = (
        coefficients(*batch.inputs, spec, weights=w, **batch.optional)[1]
        for w in (None, one, 0 * one)
    )
    np.testing.assert_array_equal(ones.g_logp, plain.g_logp)
    assert ones.loss == pytest.approx(plain.loss, rel=1e-14)
    assert zeros.metrics.pop("actor/pg_loss") == 0.0 != plain.metrics.pop("actor/pg_loss")
    assert zeros.metrics == pytest.approx(plain.metrics, rel=1e-14)
    if spec.kl is None and spec.entropy is None:
        assert zeros.loss == 0.0 and (zeros.g_logp == 0).all()
        return
    terms = PolicyLossSpec(
        ratio="none", surrogate=ll.NoPolicy(), kl=spec.kl, entropy=spec.entropy,
        aggregation=spec.aggregation,
    )  # fmt: skip
    _, alone = coefficients(*batch.inputs, terms, **batch.optional)
    assert zeros.loss == pytest.approx(alone.loss, rel=1e-14)
    np.testing.assert_array_equal(zeros.g_logp, alone.g_logp)
    np.testing.assert_array_equal(zeros.g_entropy, alone.g_entropy)


def test_a_weight_of_0_is_no_policy_term_whatever_the_ratio() -> None:
    logp, a = np.array([900.0, -1.0]), np.array([-1.0, -1.0])
    old, mask = np.array([0.0, -1.0]), np.ones(2, bool)
    out = policy_loss(logp, old, a, mask, ll.presets["ppo"], weights=np.array([0.0, 3.0]))
    assert out.loss == 1.5
    with pytest.raises(ValueError, match=r"weight 0.5"):
        policy_loss(logp, old, a, mask, ll.presets["ppo"], weights=np.array([0.5, 3.0]))


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_what_is_no_weight_is_named_at_its_place(bad: float) -> None:
    batch = make_batch(47)
    w, (i, j) = weights_of(batch), np.argwhere(batch.mask)[5]
    w[i, j] = bad
    with pytest.raises(ValueError, match=rf"weights must be finite and >= 0.*{bad} at \[{i}, {j}"):
        policy_loss(*batch.inputs, ll.presets["ppo"], weights=w)


@pytest.mark.parametrize("name", ["ppo", "gspo", "entropy_weights", "correction_mis"])
def test_the_arrays_of_a_device(name: str) -> None:
    batch = make_batch(48, dtype=np.float32)
    options = {**batch.optional, "weights": weights_of(batch)}
    _, expected = coefficients(*batch.inputs, SPECS[name], **options)
    there = {k: torch.from_numpy(x) for k, x in options.items()}
    arrays = [torch.from_numpy(np.ascontiguousarray(x)) for x in batch.inputs]
    with NothingIsRead():
        _, out = coefficients(*arrays, SPECS[name], kernels=TensorTokens(), **there)
    assert out.loss == pytest.approx(expected.loss, rel=1e-12, abs=1e-15)
    np.testing.assert_allclose(out.g_logp.numpy(), expected.g_logp, rtol=3e-7, atol=1e-12)


def test_a_device_flags_what_is_no_weight() -> None:
    batch = make_batch(49)
    w = weights_of(batch)
    w[tuple(np.argwhere(batch.mask)[2])] = -1.0
    arrays = [torch.from_numpy(np.ascontiguousarray(x)) for x in (*batch.inputs, w)]
    _, out = coefficients(*arrays[:4], SPECS["ppo"], kernels=TensorTokens(), weights=arrays[4])
    assert np.isnan(out.loss)


# ---- the head


def head_weights(seed: int = 5) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    shape = head_batch()["mask"].shape
    return torch.rand(shape, generator=g) * (torch.rand(shape, generator=g) > 0.3)


def as_double(tensors: dict[str, Any]) -> dict[str, Any]:
    return {
        k: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for k, x in tensors.items()
    }


@pytest.mark.parametrize("name", SPECS)
def test_linear_policy_loss(name: str) -> None:
    spec, data, w = spec_of(name), head_batch(3), head_weights()
    options = inputs_of(spec, data)
    leaves = [data[k].requires_grad_() for k in LEAVES]
    out = ll.linear_policy_loss(**data, spec=spec, weights=w, **options)
    gradients = torch.autograd.grad(out.loss, leaves)
    # in float64: plain float32 is as far from the truth as the fused loss, or farther
    data, options = as_double(data), as_double(options)
    leaves = [data[k].detach().requires_grad_() for k in LEAVES]
    plain = ll.linear_token_stats(*leaves, data["targets"], backend="torch")
    expected = ll.policy_loss(
        plain.logp, data["old_logp"], data["advantages"], data["mask"], spec,
        entropy=plain.entropy, weights=w.double(), **options,
    )  # fmt: skip
    right = torch.autograd.grad(expected.loss, leaves)
    n = data["mask"].sum() if spec.aggregation == "token-sum" else 1
    assert_values(out.loss.view(1) / n, expected.loss.detach().view(1) / n, torch.float32)
    for mine, truth in zip(gradients, right, strict=True):
        assert_gradients(mine, truth, torch.float32, scale=5)


@pytest.mark.parametrize("way", [APART, *CHUNKS.values(), None], ids=["apart", *CHUNKS, "tail"])
def test_every_way_of_the_head(monkeypatch: pytest.MonkeyPatch, way: Any) -> None:
    """A row of weight 0 has no gradient; per sequence as per token."""
    data, each = head_batch(4), torch.tensor([0.0, 2.0, 0.0, 0.5])
    if way is not None:
        force(monkeypatch, way)
    tail_mass, found = 0.05 if way is None else 0.0, []
    for w in (each, each[:, None].expand_as(data["mask"])):
        mine = {k: v.detach().requires_grad_() if k in LEAVES else v for k, v in data.items()}
        out = ll.linear_policy_loss(**mine, spec=ll.presets["ppo"], weights=w, tail_mass=tail_mass)
        found.append((out.loss, *torch.autograd.grad(out.loss, [mine[k] for k in LEAVES])))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
    d_hidden = found[0][1]
    assert (d_hidden[[0, 2]] == 0).all() and (d_hidden[[1, 3]] != 0).any()


def test_numpy_values_of_the_head() -> None:
    data, w = head_batch(6), head_weights()
    torch_out = ll.linear_policy_loss(**data, spec=ll.presets["dapo"], weights=w)
    arrays = {k: v.numpy() for k, v in data.items()}
    out = ll.linear_policy_loss(**arrays, spec=ll.presets["dapo"], weights=w.numpy())
    assert float(out.loss) == pytest.approx(float(torch_out.loss), rel=1e-5)
