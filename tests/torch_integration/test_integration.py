"""Autocast, GradScaler, checkpointing, compilation: the head ops among torch's other tools."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import logitless as ll
from tests.support.heads import batch
from tests.support.plans import APART, CHUNKS, force_backward
from tests.support.tolerances import assert_bitwise_equal, assert_gradients, assert_values

WAYS = {"apart": APART, "one-pass": CHUNKS["whole"]}
SPEC = dataclasses.replace(ll.presets["ppo"], entropy=ll.EntropyBonus(0.01))
H, V = 8, 2500


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    force_backward(monkeypatch, WAYS[request.param])
    return request.param


class Model(torch.nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.body = torch.nn.Linear(H, H, bias=False, dtype=dtype)
        self.lm_head = torch.nn.Linear(H, V, bias=False, dtype=dtype)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) / H**0.5)

    def forward(self, data: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = torch.tanh(self.body(data["x"]))
        return ll.linear_policy_loss(
            hidden, self.lm_head.weight, data["targets"], data["old_logp"], data["advantages"],
            data["mask"], SPEC,
        ).loss  # fmt: skip


def inputs() -> dict[str, torch.Tensor]:
    data = batch(20)
    x = data.pop("hidden")
    del data["weight"]
    model, spread = Model(), data["old_logp"] - data["old_logp"].mean()
    hidden = torch.tanh(model.body(x))
    stats = ll.linear_token_stats(hidden, model.lm_head.weight, data["targets"])
    # near the policy, so that no ratio is large
    data["old_logp"] = stats.logp.detach() + 0.02 * spread
    return {"x": x, **data}


def gradients(model: Model) -> list[torch.Tensor]:
    found = [p.grad for p in model.parameters()]
    for p in model.parameters():
        p.grad = None
    return found  # type: ignore[return-value]


def test_autocast_is_that_of_a_linear_layer(way: str) -> None:
    data = batch(21)
    leaves = [data[k].requires_grad_() for k in ("hidden", "weight")]
    with torch.autocast("cpu", torch.bfloat16):
        out = ll.linear_policy_loss(**data, spec=SPEC)
        plain = torch.nn.functional.linear(*leaves)
        assert plain.dtype == torch.bfloat16
        # within autocast on purpose: the products of the backward keep their dtypes as well
        got = torch.autograd.grad(out.loss, leaves)
    cast = {k: v.detach().bfloat16() if k in ("hidden", "weight") else v for k, v in data.items()}
    own = [cast[k].requires_grad_() for k in ("hidden", "weight")]
    expected = ll.linear_policy_loss(**cast, spec=SPEC)
    assert_bitwise_equal(out.loss, expected.loss)
    for ours, right in zip(got, torch.autograd.grad(expected.loss, own), strict=True):
        assert ours.dtype == torch.float32
        assert_bitwise_equal(ours, right.float())


def test_mixed_dtypes_only_under_autocast() -> None:
    data = batch(22)
    h, w, t = (
        data["hidden"].bfloat16().requires_grad_(),
        data["weight"].requires_grad_(),
        data["targets"],
    )
    with pytest.raises(TypeError, match="hidden and weight must share one dtype"):
        ll.linear_token_stats(h, w, t)
    with torch.autocast("cpu", torch.bfloat16):
        stats = ll.linear_token_stats(h, w, t, logits_dtype=torch.bfloat16)
        # logits stay float32 where they are asked to, whatever autocast says of products
        exact = ll.linear_token_stats(h, w, t, logits_dtype=torch.float32)
    dh, dw = torch.autograd.grad(exact.logp.sum(), (h, w))
    assert (dh.dtype, dw.dtype) == (torch.bfloat16, torch.float32)
    wide = ll.linear_token_stats(h.float(), w.bfloat16().float(), t)
    assert_values(exact.logp, wide.logp.detach(), torch.float32)
    assert (stats.logp - wide.logp).abs().max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_grad_scaler(way: str, dtype: torch.dtype) -> None:
    """Scaled, unscaled, stepped: the update of the unscaled loss; an overflow skips the step."""
    data = inputs()
    models = [Model(), Model()]
    for i, model in enumerate(models):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=i == 1)
        with torch.autocast("cpu", dtype, enabled=dtype == torch.float16):
            loss = model(data)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    start = Model().lm_head.weight
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert_gradients(b, a, dtype, scale=500 if dtype == torch.float16 else 5)
    assert not torch.equal(models[1].lm_head.weight, start)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    optimizer, before = (
        torch.optim.SGD(models[1].parameters(), lr=0.5),
        models[1].lm_head.weight.clone(),
    )
    scaler.scale(models[1](data) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(models[1].lm_head.weight, before)
    assert scaler.get_scale() == 2.0**11


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(way: str, reentrant: bool) -> None:
    model, data = Model(), inputs()
    model(data).backward()
    expected = gradients(model)

    def part(x: torch.Tensor) -> torch.Tensor:
        return model({**data, "x": x})

    x = data["x"].clone().requires_grad_()
    checkpoint(part, x, use_reentrant=reentrant).backward()
    for ours, right in zip(gradients(model), expected, strict=True):
        assert_bitwise_equal(ours, right)


def test_compiled_as_one_graph(way: str) -> None:
    model, data = Model(), inputs()
    eager = model(data)
    eager.backward()
    expected = gradients(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss = compiled(data)
    loss.backward()
    assert_bitwise_equal(loss, eager)
    for ours, right in zip(gradients(model), expected, strict=True):
        assert_gradients(ours, right, torch.float32, scale=5)


def test_compiled_token_stats_with_batch_statistics(way: str) -> None:
    """Selection by the batch, metrics, and the op that gives statistics alone."""
    data = inputs()
    spec = dataclasses.replace(ll.presets["kl_cov"], control=ll.KLCov(0.2, 1.0))
    ids = torch.arange(data["targets"].numel()).view(data["targets"].shape)
    statistics = ll.batch_stats(
        data["old_logp"], data["advantages"], data["mask"], spec, token_ids=ids, seed=0, step=0
    )
    weight = torch.randn(V, H).requires_grad_()

    def f(x: torch.Tensor) -> Any:
        stats = ll.linear_token_stats(
            x, weight, data["targets"], mask=data["mask"], extras=("argmax",)
        )
        out = ll.linear_policy_loss(
            x, weight, data["targets"], data["old_logp"], data["advantages"], data["mask"], spec,
            batch=statistics, token_ids=ids,
        )  # fmt: skip
        return (
            out.loss + stats.entropy.sum(),
            out.metrics["actor/cov_selected"],
            stats.extras["argmax"],
        )

    torch._dynamo.reset()
    loss, share, argmax = torch.compile(f, fullgraph=True, backend="aot_eager")(data["x"])
    right, right_share, right_argmax = f(data["x"])
    assert_bitwise_equal(loss, right)
    assert share == right_share > 0
    assert torch.equal(argmax, right_argmax)
    assert_gradients(
        torch.autograd.grad(loss, weight)[0], torch.autograd.grad(right, weight)[0], torch.float32
    )


@pytest.mark.parametrize("make", ["expanded", "strided"])
def test_upstream_gradients_of_any_layout(make: str) -> None:
    data = batch(23)
    leaf = data["weight"].requires_grad_()
    stats = ll.linear_token_stats(data["hidden"], leaf, data["targets"])
    other = ll.linear_token_stats(data["hidden"], leaf, data["targets"])
    shape = stats.logp.shape
    g = torch.tensor(0.5).expand(shape) if make == "expanded" else torch.randn(*shape[::-1]).t()
    (ours,) = torch.autograd.grad([stats.logp, stats.entropy], leaf, [g, g])
    (right,) = torch.autograd.grad([other.logp, other.entropy], leaf, [g.contiguous()] * 2)
    assert_bitwise_equal(ours, right)


class Quantised(torch.Tensor):
    """As torchao's: claims to be a float tensor, and unpacks itself in __torch_dispatch__."""

    @classmethod
    def __torch_dispatch__(cls, *_: Any) -> Any:  # type: ignore[override]
        raise AssertionError("unpacked")


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(50, 8, dtype=torch.int8), "got Tensor of int8: a quantised head"),
        (torch.ones(200, 1, dtype=torch.uint8), "got Tensor of uint8: a quantised head"),
        (torch.ones(50, 8, dtype=torch.float8_e4m3fn), "got Tensor of float8_e4m3fn"),
        (
            torch.Tensor._make_wrapper_subclass(Quantised, (50, 8), dtype=torch.bfloat16),
            "got Quantised of bfloat16: a quantised head",
        ),
    ],
)
def test_quantised_heads_are_refused_by_name(weight: torch.Tensor, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        ll.linear_token_stats(torch.randn(4, 8), weight, torch.arange(4))


def test_weights_that_are_not_there() -> None:
    h, t = torch.randn(4, 8), torch.arange(4)
    with pytest.raises(ValueError, match="a shard that ZeRO-3 or FSDP has not gathered"):
        ll.linear_token_stats(h, torch.empty(0), t)
    with pytest.raises(ValueError, match="got a tensor on the meta device"):
        ll.linear_token_stats(h, torch.empty(50, 8, device="meta"), t)
