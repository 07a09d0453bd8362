"""torch.compile: every public op is part of one graph, for any length, with the bits of eager."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import logitless as ll
from logitless.ops.head.planner.cost import Strategy
from tests.support.plans import APART, CHUNKS, force
from tests.support.tolerances import assert_bitwise_equal
from tests.support.versions import TORCH

DOUBLE = ("old_logp", "advantages", "rollout_logp")
H, V = 16, 300
LENGTHS = (6, 12, 17)
PPO = dataclasses.replace(ll.presets["ppo"], entropy=ll.EntropyBonus(0.01))
KL_COV = dataclasses.replace(ll.presets["kl_cov"], control=ll.KLCov(0.6, 1.0))
Data = dict[str, Any]
Op = Callable[[Data], tuple[torch.Tensor, ...]]


def compiled(f: Any, dynamic: bool | None) -> Any:
    """By aot_eager, which traces forward and backward and calls no compiler."""
    torch._dynamo.reset()
    counters.clear()
    return torch.compile(f, fullgraph=True, dynamic=dynamic, backend="aot_eager")


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def make(n: int, dtype: torch.dtype = torch.float32) -> Data:
    g = torch.Generator().manual_seed(n)

    def noise(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=g)

    ids = torch.randperm(n, generator=g)
    data: Data = {
        "hidden": noise(n, H).to(dtype), "weight": noise(V, H).to(dtype), "bias": noise(V),
        "targets": torch.randint(0, V, (n,), generator=g), "advantages": noise(n),
        "mask": torch.rand(n, generator=g) > 0.3, "old_logp": -4 - noise(n).abs(),
        "ids": ids, "cu_seqlens": torch.tensor([0, 2, n], dtype=torch.int32),
        "temperature": 0.5 + noise(n).abs(),
    }  # fmt: skip
    data["rollout_logp"] = data["old_logp"] + 0.1 * noise(n)
    data["batch"] = statistics(data, KL_COV, step=n)
    for name in ("hidden", "weight", "bias"):
        data[name].requires_grad_()
    return data


def statistics(d: Data, spec: ll.PolicyLossSpec, step: int) -> ll.BatchStats:
    """Of a batch of which the call holds all tokens; other means and counts in every step."""
    known = (d["old_logp"], d["advantages"], d["mask"], spec)
    return ll.batch_stats(*known, token_ids=d["ids"], seed=0, step=step)


def given(d: Data, options: dict[str, Any]) -> dict[str, Any]:
    """Options that name an entry of the data are that entry."""
    return {k: d[v] if isinstance(v, str) and v in d else v for k, v in options.items()}


def rows(**options: Any) -> Op:
    def call(d: Data) -> tuple[torch.Tensor, ...]:
        logits = d["hidden"] @ d["weight"].t()
        own = given(d, options)
        out = ll.token_stats(logits, d["targets"], mask=d["mask"], **own)
        return (out.logp, out.entropy, out.lse, *out.extras.values())

    return call


def head(**options: Any) -> Op:
    def call(d: Data) -> tuple[torch.Tensor, ...]:
        own = given(d, options)
        out = ll.linear_token_stats(d["hidden"], d["weight"], d["targets"], mask=d["mask"], **own)
        return (out.logp, out.entropy, out.lse, *out.extras.values())

    return call


def loss(spec: ll.PolicyLossSpec, **options: Any) -> Op:
    def call(d: Data) -> tuple[torch.Tensor, ...]:
        own = given(d, options)
        old_logp = own.pop("old_logp", d["old_logp"])
        out = ll.linear_policy_loss(
            d["hidden"], d["weight"], d["targets"], old_logp, d["advantages"], d["mask"], spec,
            **own,
        )  # fmt: skip
        return (out.loss, out.logp, out.entropy, *out.extras.values(), *out.metrics.values())

    return call


def tokens(spec: ll.PolicyLossSpec, **options: Any) -> Op:
    def call(d: Data) -> tuple[torch.Tensor, ...]:
        own = given(d, options)
        logp, entropy = d["hidden"].sum(-1) - 5, d["hidden"].square().sum(-1)
        data = (own.pop("old_logp", d["old_logp"]), d["advantages"], d["mask"], spec)
        out = ll.policy_loss(logp, *data, entropy=entropy, **own)
        return (out.loss, *out.metrics.values())

    return call


def sample(**options: Any) -> Op:
    def call(d: Data) -> tuple[torch.Tensor, ...]:
        own = given(d, options)
        # Another step of sampling at every length.
        step = len(d["ids"])
        return tuple(ll.linear_sample(d["hidden"], d["weight"], row_ids=d["ids"], step=step, **own))

    return call


def weights(name: str) -> Op:
    def call(d: Data) -> tuple[torch.Tensor, ...]:
        out = ll.rollout_weights(
            d["old_logp"], d["rollout_logp"], d["mask"], ll.corrections[name],
            cu_seqlens=d["cu_seqlens"],
        )  # fmt: skip
        metrics = [torch.as_tensor(x, dtype=torch.float64) for x in out.metrics.values()]
        return (out.weights, out.keep, *metrics)

    return call


def ids(d: Data) -> tuple[torch.Tensor, ...]:
    return (ll.token_ids(d["ids"], d["targets"], V),)


CHAIN = {"softcap": 20.0, "logit_scale": 0.5, "bias": "bias", "temperature": "temperature"}
TIS = dataclasses.replace(ll.presets["grpo"], correction=ll.corrections["seq_tis"])
OWN = dataclasses.replace(PPO, entropy=ll.EntropyBonus(0.01, "seq-mean-token-mean"))
TOTALS = ll.Totals(100, 4, 2)
OPS: dict[str, Op] = {
    "token_stats": rows(extras=("argmax", "varentropy")),
    "token_stats, chain": rows(**CHAIN),
    "linear_token_stats": head(extras=("argmax",)),
    "linear_token_stats, chain": head(**CHAIN, batch_invariant=True),
    "linear_token_stats, budget": head(memory_budget="64KiB"),
    "linear_token_stats, tail_mass": head(tail_mass=0.3, extras=("dropped_mass",)),
    "linear_policy_loss": loss(PPO),
    "linear_policy_loss, chain": loss(PPO, **CHAIN),
    "linear_policy_loss, budget": loss(PPO, memory_budget=80_000),
    "linear_policy_loss, batch": loss(KL_COV, batch="batch", token_ids="ids"),
    "linear_policy_loss, totals": loss(PPO, totals=TOTALS, grad_scale=2.0),
    "linear_policy_loss, apart": loss(ll.presets["gspo"], cu_seqlens="cu_seqlens"),
    "linear_policy_loss, on-policy": loss(PPO, old_logp=None),
    "linear_policy_loss, weights": loss(PPO, weights="temperature"),
    "linear_policy_loss, extras": loss(PPO, extras=("sum_p2", "argmax", "dropped_mass")),
    "linear_policy_loss, own terms": loss(OWN, cu_seqlens="cu_seqlens", metrics="means"),
    "linear_policy_loss, tail_mass": loss(PPO, tail_mass=0.3),
    "policy_loss": tokens(PPO),
    "policy_loss, on-policy": tokens(PPO, old_logp=None, weights="temperature"),
    "policy_loss, batch": tokens(KL_COV, batch="batch", token_ids="ids"),
    "policy_loss, totals": tokens(PPO, totals=TOTALS),
    "policy_loss, correction": tokens(TIS, rollout_logp="rollout_logp", cu_seqlens="cu_seqlens"),
    "linear_sample": sample(seed=3),
    "linear_sample, chain": sample(seed=2**64 - 1, **CHAIN),
    "linear_sample, top_p": sample(seed=3, top_k=40, top_p=0.9),
    "rollout_weights": weights("geo_mask_tis"),
    "token_ids": ids,
}  # fmt: skip
AUTOMATIC = (
    "token_stats", "linear_token_stats", "linear_policy_loss", "linear_policy_loss, batch",
    "policy_loss", "linear_sample", "rollout_weights",
)  # fmt: skip
LEAVES = ("hidden", "weight", "bias")


def gradients(out: tuple[torch.Tensor, ...], d: Data) -> list[torch.Tensor | None]:
    """Of a sum with other factors for every output and row."""
    differentiable = [x for x in out if x.requires_grad]
    if not differentiable:
        return []
    upstream = [torch.linspace(0.5, 1.5, x.numel()).view(x.shape).to(x) for x in differentiable]
    leaves = [d[name] for name in LEAVES]
    return list(torch.autograd.grad(differentiable, leaves, upstream, allow_unused=True))


def assert_same(f: Any, op: Op, n: int, dtype: torch.dtype = torch.float32) -> None:
    ours, right = make(n, dtype), make(n, dtype)
    out, expected = f(ours), op(right)
    assert len(out) == len(expected)
    for x, y in zip(out, expected, strict=True):
        assert_bitwise_equal(x, y)
    for a, b in zip(gradients(out, ours), gradients(expected, right), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert_bitwise_equal(a, b)


@pytest.mark.parametrize("name", OPS)
def test_one_graph_with_the_bits_of_eager(name: str) -> None:
    """Forward, and backward where there is one."""
    f = compiled(OPS[name], True)
    for n in LENGTHS:
        assert_same(f, OPS[name], n)
    assert graphs() == 1


@pytest.mark.parametrize("name", AUTOMATIC)
def test_a_fixed_graph_and_one_for_all_that_come_after(name: str) -> None:
    """What torch.compile does unless told otherwise."""
    f = compiled(OPS[name], None)
    for n in LENGTHS:
        assert_same(f, OPS[name], n)
    assert graphs() == 2


def test_fixed_lengths_are_a_graph_each() -> None:
    f = compiled(OPS["linear_policy_loss"], False)
    for n in LENGTHS[:2]:
        assert_same(f, OPS["linear_policy_loss"], n)
    assert graphs() == 2


@pytest.mark.parametrize("name", ["linear_token_stats", "linear_policy_loss, batch"])
def test_without_gradients(name: str) -> None:
    f = compiled(OPS[name], True)
    with torch.no_grad():
        for n in LENGTHS:
            assert_same(f, OPS[name], n)
    assert graphs() == 1


@pytest.mark.parametrize(
    ("way", "dtype"),
    [
        (CHUNKS["whole"], torch.bfloat16),
        (CHUNKS["tall"], torch.float16),
        (CHUNKS["short"], torch.bfloat16),
        (APART, torch.float16),
    ],
    ids=[*CHUNKS, "keep"],
)
def test_every_way(monkeypatch: pytest.MonkeyPatch, way: Strategy, dtype: torch.dtype) -> None:
    """What the planner finds when the graph runs; here also chunks of rows and kept logits."""
    force(monkeypatch, way)
    name = "linear_token_stats" if way is APART else "linear_policy_loss"
    f = compiled(OPS[name], True)
    for n in LENGTHS:
        assert_same(f, OPS[name], n, dtype)
    assert graphs() == 1


def test_without_a_chunk_for_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager takes the two passes apart there; a graph has one op, which takes all rows at once."""
    force(monkeypatch, Strategy(4, 2048, 0))
    f = compiled(OPS["linear_policy_loss"], True)
    for n in LENGTHS:
        assert_same(f, OPS["linear_policy_loss"], n)


def test_steps_of_an_optimizer() -> None:
    """Batch statistics are other numbers in every step, and no other graph."""
    f, d = compiled(OPS["policy_loss, batch"], None), make(9)
    for step in range(10):
        d["old_logp"] = d["old_logp"] - 0.1 * torch.rand(9)
        d["batch"] = statistics(d, KL_COV, step)
        assert_bitwise_equal(f(d)[0], OPS["policy_loss, batch"](d)[0])
    assert graphs() <= 2


def test_another_spec_is_another_graph() -> None:
    d = make(9)

    def call(d: Data, spec: ll.PolicyLossSpec) -> torch.Tensor:
        return tokens(spec)(d)[0]

    f, seen = compiled(call, None), set()
    for low in (0.1, 0.2, 0.3, 0.2):
        spec = dataclasses.replace(PPO, surrogate=ll.Clip(low, 0.1))
        assert_bitwise_equal(f(d, spec), call(d, spec))
        seen.add(f(d, spec).item())
    assert len(seen) == graphs() == 3


@pytest.mark.parametrize(("dynamic", "most"), [(None, 2), (True, 1)])
def test_a_coefficient_that_moves_compiles_nothing(dynamic: bool | None, most: int) -> None:
    """As any number, it is a constant of the first graph unless all is dynamic, and then none."""
    d = make(9)

    def call(d: Data, spec: ll.PolicyLossSpec, scale: float) -> torch.Tensor:
        return tokens(spec, grad_scale=scale)(d)[0]

    f, seen = compiled(call, dynamic), set()
    for i in range(1, 6):
        spec = dataclasses.replace(
            PPO, entropy=ll.EntropyBonus(0.1 * i), kl=ll.KL("k3", 0.3 * i, against="old")
        )
        assert_bitwise_equal(f(d, spec, 1.5 * i), call(d, spec, 1.5 * i))
        seen.add(f(d, spec, 1.5 * i).item())
    assert len(seen) == 5 and graphs() <= most


@pytest.mark.skipif(
    TORCH < (2, 13), reason="torch before 2.13 traces no spec that is made inside of a graph"
)
def test_a_spec_made_inside() -> None:
    def call(d: Data) -> torch.Tensor:
        return tokens(dataclasses.replace(PPO, surrogate=ll.Clip(0.1, 0.3)))(d)[0]

    assert_bitwise_equal(compiled(call, None)(make(9)), call(make(9)))


@pytest.mark.parametrize("name", ["batch_stats", "covariance"])
def test_numbers_of_the_data_stay_outside(name: str) -> None:
    """With fullgraph an error that says so; else a break, and the same numbers."""
    calls: dict[str, Any] = {
        "batch_stats": lambda d: statistics(d, KL_COV, 0).mean_logp,
        "covariance": lambda d: ll.covariance(d["old_logp"], d["advantages"], d["mask"]).mean,
    }
    with pytest.raises(torch._dynamo.exc.Unsupported, match=f"{name}.*outside of what is compiled"):
        compiled(calls[name], None)(make(9))
    torch._dynamo.reset()
    broken: Any = torch.compile(calls[name], backend="aot_eager")
    assert broken(make(9)) == calls[name](make(9))


@pytest.mark.parametrize("name", ["token_stats, chain", "linear_sample, chain"])
def test_bad_temperatures_raise_when_the_graph_runs(name: str) -> None:
    f, d = compiled(OPS[name], True), make(9)
    f(d)
    d["mask"][3], d["temperature"][3] = True, -1.0
    with pytest.raises(ValueError, match="finite and > 0 on every row, got temperature -1"):
        f(d)


# torch.utils.mkldnn, which inductor imports, uses what torch itself calls deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_by_inductor() -> None:
    """In float64 and with leaves of their own nothing is left that wants a C++ compiler."""

    def call(a: Data, b: Data) -> tuple[torch.Tensor, ...]:
        drawn = OPS["linear_sample"]({**a, "hidden": a["hidden"].detach()})
        return (*head()(a), loss(ll.presets["ppo"])(b)[0], *drawn)

    torch._dynamo.reset()
    f = torch.compile(call, fullgraph=True, dynamic=True, backend="inductor")
    for n in LENGTHS[:2]:
        out, ours = [], []
        for g in (f, call):
            a, b = (
                {k: v.double() if k in DOUBLE else v for k, v in make(n, torch.float64).items()}
                for _ in range(2)
            )
            found = g(a, b)
            out.append(found)
            leaves = [x[k] for x in (a, b) for k in ("hidden", "weight")]
            ours.append(torch.autograd.grad(found[:4], leaves, [x * 0 + 0.5 for x in found[:4]]))
        for x, y in zip((*out[0], *ours[0]), (*out[1], *ours[1]), strict=True):
            assert_bitwise_equal(x, y)
