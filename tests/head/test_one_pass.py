"""The one-pass of linear_policy_loss: the same loss and gradients as forward and backward apart."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

import logitless as ll
from logitless.ops.head.planner.cost import Strategy
from tests.support import cases
from tests.support.heads import batch, spec_of
from tests.support.plans import APART, CHUNKS, LEAVES, force, took_one_pass
from tests.support.tolerances import assert_bitwise_equal, assert_gradients, assert_values


def call(data: dict[str, Any], spec: ll.PolicyLossSpec, factor: float = 1.0, **options: Any) -> Any:
    data = {k: v.detach().requires_grad_() if k in LEAVES else v for k, v in data.items()}
    if spec.kl is not None:
        options["ref_logp"] = data["old_logp"] - 0.1
    out = ll.linear_policy_loss(**data, spec=spec, **options)
    leaves = [data[k] for k in LEAVES]
    bias = options.get("bias")
    if bias is not None and bias.requires_grad:
        leaves.append(bias)
    return out, torch.autograd.grad(out.loss * factor, leaves)


@pytest.mark.parametrize("way", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("name", ["ppo", "grpo", "dr_grpo", "dapo"])
def test_the_same_as_apart(monkeypatch: pytest.MonkeyPatch, name: str, way: Strategy) -> None:
    spec, data = spec_of(name), batch(3)
    spec = dataclasses.replace(spec, kl=ll.KL("k2", 0.1), entropy=ll.EntropyBonus(0.05))
    bias = torch.randn(len(data["weight"])).requires_grad_()
    options: dict[str, Any] = {"temperature": 0.8, "bias": bias, "softcap": 20.0}
    force(monkeypatch, APART)
    expected, right = call(data, spec, factor=0.7, **options)
    assert not took_one_pass(expected)
    force(monkeypatch, way)
    out, gradients = call(data, spec, factor=0.7, **options)
    assert took_one_pass(out)
    assert_values(out.loss.view(1), expected.loss.detach().view(1), torch.float32)
    assert out.metrics.keys() == expected.metrics.keys()
    for key, value in out.metrics.items():
        assert_values(value.view(1), expected.metrics[key].view(1), torch.float32)
    for ours, theirs in zip(out[2:4], expected[2:4], strict=True):
        assert_values(ours, theirs, torch.float32)
        assert not ours.requires_grad
    for ours, truth in zip(gradients, right, strict=True):
        assert truth.abs().max() > 0
        assert_gradients(ours, truth, torch.float32, scale=5)


@pytest.mark.parametrize("way", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_dtypes(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, way: Strategy) -> None:
    """As near the float64 gradient as forward and backward apart, in every dtype."""
    data, spec = batch(4), dataclasses.replace(ll.presets["ppo"], entropy=ll.EntropyBonus(0.1))
    narrow = {k: v.to(dtype) if k in LEAVES else v for k, v in data.items()}
    wide = {k: v.double() if k in LEAVES else v for k, v in narrow.items()}
    force(monkeypatch, APART)
    exact, right = call(wide, spec)
    plain, plain_gradients = call(narrow, spec)
    force(monkeypatch, way)
    out, gradients = call(narrow, spec)
    assert_values(out.logp, exact.logp.float(), dtype, plain=plain.logp)
    for ours, theirs, truth in zip(gradients, plain_gradients, right, strict=True):
        assert ours.dtype == dtype
        worst = np.abs(cases.to_numpy(theirs) - cases.to_numpy(truth)).max()
        assert_gradients(ours, truth, dtype, scale=5 + 2 * worst / 1e-6)


@pytest.mark.parametrize("way", [CHUNKS["whole"], CHUNKS["short"]], ids=["whole", "short"])
def test_float16_keeps_small_gradients(monkeypatch: pytest.MonkeyPatch, way: Strategy) -> None:
    """A loss of 1e-6, scaled up after: apart, the scale arrives before the tiles are rounded."""
    data, spec = batch(5), ll.presets["ppo"]
    data = {k: v.half() if k in LEAVES else v for k, v in data.items()}
    force(monkeypatch, APART)
    _, right = call({k: v.double() if k in LEAVES else v for k, v in data.items()}, spec, 64.0)
    _, plain = call(data, spec, factor=64.0)
    force(monkeypatch, way)
    _, gradients = call(data, spec, factor=64e6, grad_scale=1e-6)
    for ours, theirs, truth in zip(gradients, plain, right, strict=True):
        worst = np.abs(cases.to_numpy(theirs) - cases.to_numpy(truth)).max()
        assert_gradients(ours, truth, torch.float16, scale=5 + 2 * worst / 1e-6)


def test_a_factor_rounds_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """1/3 is not a bfloat16; the gradient is multiplied by the float32 number."""
    data, spec = batch(6), ll.presets["ppo"]
    data = {k: v.bfloat16() if k in LEAVES else v for k, v in data.items()}
    force(monkeypatch, CHUNKS["whole"])
    _, plain = call(data, spec)
    _, scaled = call(data, spec, factor=1 / 3)
    for one, third in zip(plain, scaled, strict=True):
        assert_bitwise_equal((one.float() / 3).bfloat16(), third)


@pytest.mark.parametrize("leaf", LEAVES)
def test_only_requested_gradients(monkeypatch: pytest.MonkeyPatch, leaf: str) -> None:
    data = batch(7)
    force(monkeypatch, CHUNKS["tall"])
    _, both = call(data, ll.presets["ppo"])
    data[leaf].requires_grad_()
    out = ll.linear_policy_loss(**data, spec=ll.presets["ppo"])
    assert took_one_pass(out)
    (alone,) = torch.autograd.grad(out.loss, data[leaf])
    assert_bitwise_equal(alone, both[LEAVES.index(leaf)])


@pytest.mark.parametrize("way", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("nothing", ["advantages", "mask"])
def test_no_row_has_a_gradient(
    monkeypatch: pytest.MonkeyPatch, way: Strategy, nothing: str
) -> None:
    data = batch(8)
    data[nothing] = torch.zeros_like(data[nothing])
    force(monkeypatch, way)
    out, gradients = call(data, ll.presets["ppo"])
    assert out.loss == 0
    for gradient in gradients:
        assert (gradient == 0).all()


@pytest.mark.parametrize("way", CHUNKS.values(), ids=CHUNKS)
def test_likely_tokens_of_a_batch_in_chunks(monkeypatch: pytest.MonkeyPatch, way: Strategy) -> None:
    """Their share is known of the batch, so that a chunk of rows has all that its rows need."""
    spec, data = spec_of("entropic_falls"), batch(8)
    ids = torch.arange(data["targets"].numel()).view_as(data["targets"])
    logp = ll.linear_token_stats(*(data[k] for k in ("hidden", "weight", "targets"))).logp
    stats = ll.batch_stats(
        logp, data["advantages"], data["mask"], spec, token_ids=ids, seed=0, step=0
    )
    assert 0.1 < stats.likely < 0.9
    options: dict[str, Any] = {"batch": stats, "token_ids": ids}
    force(monkeypatch, APART)
    expected, right = call(data, spec, **options)
    force(monkeypatch, way)
    out, gradients = call(data, spec, **options)
    assert took_one_pass(out) and not took_one_pass(expected)
    assert_values(out.loss.view(1), expected.loss.detach().view(1), torch.float32)
    for ours, truth in zip(gradients, right, strict=True):
        assert_gradients(ours, truth, torch.float32, scale=5)


def test_selection_over_the_call_takes_one_chunk() -> None:
    """Clip-Cov needs the logp of all rows unless the batch has selected."""
    from logitless.loss.evaluate.coefficients import separable

    spec = spec_of("clip_cov")
    control: Any = spec.control
    micro = dataclasses.replace(spec, control=dataclasses.replace(control, scope="micro"))
    assert separable(ll.presets["ppo"], batch=False)
    assert separable(spec, batch=True)
    assert not separable(spec, batch=False)
    assert not separable(micro, batch=True)
    plan = ll.plan(4096, 64, 50000, "float32", "256MiB", split=False)
    assert plan.chunk_rows in (0, 4096)
    assert 0 < ll.plan(4096, 64, 50000, "float32", "256MiB").chunk_rows < 4096


def test_one_backward() -> None:
    data = batch(9)
    leaf = data["weight"].requires_grad_()
    loss = ll.linear_policy_loss(**data, spec=ll.presets["ppo"]).loss
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(loss, leaf, create_graph=True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_the_gradient_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the forward made becomes .grad itself: d_weight is as large as the head."""
    data = batch(10)
    force(monkeypatch, CHUNKS["whole"])
    leaf = data["weight"].requires_grad_()
    out = ll.linear_policy_loss(**data, spec=ll.presets["ppo"])
    made = [x.data_ptr() for x in out.loss.grad_fn.saved_tensors]
    out.loss.backward()
    assert leaf.grad.data_ptr() in made


def test_bad_inputs_are_named_before_any_product(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_product(*_: Any, **__: Any) -> None:
        raise AssertionError("a product was made")

    data = batch(11)
    data["weight"].requires_grad_()
    force(monkeypatch, CHUNKS["short"])
    monkeypatch.setattr(torch, "mm", no_product)
    wrong = {**data, "old_logp": data["old_logp"][:2]}
    with pytest.raises(ValueError, match="old_logp must be shaped like logp"):
        ll.linear_policy_loss(**wrong, spec=ll.presets["ppo"])
    spec = dataclasses.replace(ll.presets["ppo"], kl=ll.KL("k3", 0.1))
    with pytest.raises(ValueError, match="ref_logp must be given"):
        ll.linear_policy_loss(**data, spec=spec)


def test_op_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schema, fake kernel and autograd registration agree, by torch's own checker."""
    from logitless.inputs.options import Tail
    from logitless.ops.head.policy_op import head_policy_extras, head_policy_loss
    from logitless.ops.head.tiling import Tiling
    from logitless.ops.losses.op import loss_inputs
    from logitless.ops.rows.arguments import RowArguments
    from logitless.ops.sharding.shard import Shard
    from tests.support.opcheck import check_op

    data = batch(12)
    n, vocab = data["targets"].numel(), len(data["weight"])
    given = (data["old_logp"], data["advantages"], data["mask"], None, None, None, None)
    arguments = loss_inputs(*given, ll.presets["ppo"], None, None, 1.0)
    hidden, weight = (data[k].detach().requires_grad_() for k in LEAVES)
    targets, mask = (data[k].view(-1) for k in ("targets", "mask"))
    rows = RowArguments(targets, mask, None, None, 1.0, 1.0, 0.0, "cpu")
    tiling = Tiling(4, 2048, 0, torch.float32, 0, "", torch.float32)
    for tail_mass in (0.0, 0.05):
        inputs = (
            hidden.view(n, -1), weight, rows, arguments, Tail(tail_mass), 10,
            [True, True, False],
            tiling, Shard(),
        )  # fmt: skip
        check_op(head_policy_loss, *inputs)
        check_op(head_policy_extras, *inputs, "sum_p2,argmax,dropped_mass", None)
        r = torch.Generator().manual_seed(13)
        low, up = torch.randn(n, 3, generator=r), torch.randn(vocab, 3, generator=r)
        joined = torch.cat((hidden.detach().view(n, -1), low), 1).requires_grad_()
        check_op(head_policy_extras, joined, *inputs[1:], "", up.requires_grad_())
    assert vocab > 2048
