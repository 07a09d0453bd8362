"""tail_mass > 0 on one of two or three ranks: entries kept, rows served and gradients are those of
one rank with the whole vocabulary. See shards.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

import logitless as ll
from logitless import reference
from logitless.ops.head.policy_op import SUPPORT_METRICS
from tests.support import cases, sparse_cases
from tests.support.heads import batch, inputs_of, spec_of
from tests.support.plans import LEAVES
from tests.support.row_outputs import EXTRAS
from tests.support.sparse_cases import ROUNDING, off, problem, upstream
from tests.support.tolerances import assert_bitwise_equal, assert_gradients, assert_values
from tests.support.workers.vocab.shards import (
    LAYOUTS,
    RANK,
    WORLD,
    V,
    compare,
    compare_with_one_rank,
    gradients_of,
    layouts,
    loss_outputs,
    mine,
    part,
    refusal,
    run,
    same_on_all_ranks,
    values,
    weighted,
)

DROPPED = ("dropped_mass", "dropped_entropy")
# Shards that end where the core's blocks do: sums are of the same numbers.
ALIGNED = [(0, 2048), (2048, V), (V, V)][:WORLD]


def of_logits(
    z: Tensor,  # [N, V]
    t: Tensor,
    g: Any,
    ends: Any,
    **options: Any,
) -> tuple[ll.TokenStats, Tensor, Tensor]:
    """Statistics, d(logits) of this rank's columns and d_hidden, of a head whose product is exact:
    hidden is the identity. `ends` None: of one rank alone."""
    columns = z if ends is None else z[:, mine(ends)]
    weight = columns.t().contiguous().requires_grad_()
    hidden = torch.eye(len(z), dtype=z.dtype).requires_grad_()
    own = options if ends is None else part(ends, options)
    stats = ll.linear_token_stats(hidden, weight, t, extras=DROPPED, **own)
    g = [torch.as_tensor(x) for x in g]
    terms = zip((stats.logp, stats.entropy, stats.lse), g, strict=True)
    loss = torch.stack([(value.double() * x).sum() for value, x in terms]).sum()
    d_hidden, d_weight = torch.autograd.grad(loss, (hidden, weight))
    return stats, d_weight.t(), d_hidden


def against_one_rank_and_the_oracle() -> None:
    """Same entries kept, same rows served; the true error, over all ranks, is within the bound."""
    tail_mass = 1e-2
    for kind in sparse_cases.KINDS:
        for dtype, slack in ROUNDING.items():
            z, t = sparse_cases.rows(kind, 1, 12, V)
            z = z.to(dtype)
            for g in sparse_cases.signs(2, len(z))[::3]:
                size = sum(np.abs(x) for x in g)[:, None]
                arrays = (z.numpy(), t.numpy())
                truth = reference.support_backward(*arrays, tail_mass=tail_mass, **upstream(g))
                exact, _ = reference.token_stats_backward(*arrays, **upstream(g))
                alone, dz, dh = of_logits(z, t, g, None, tail_mass=tail_mass)
                edge = np.abs(truth["mass"] - tail_mass) <= slack
                edge |= np.isinf(truth["entropy"]) != alone.extras[DROPPED[1]].isinf().numpy()
                for ends in [*layouts(), ALIGNED]:
                    stats, own, own_h = of_logits(z, t, g, ends, tail_mass=tail_mass)
                    same_on_all_ranks(*values(stats), own_h)
                    edge |= (stats.extras[DROPPED[1]] - alone.extras[DROPPED[1]]).isinf().numpy()
                    mass = stats.extras[DROPPED[0]]
                    np.testing.assert_allclose(mass, alone.extras[DROPPED[0]], atol=slack)
                    np.testing.assert_allclose(mass, truth["mass"], atol=slack)
                    right, sure = dz[:, mine(ends)], torch.from_numpy(~edge)
                    assert torch.equal((own != 0)[sure], (right != 0)[sure])
                    error = (own - right).abs().numpy()
                    assert (error <= 20 * slack * size)[~edge].all()
                    error = (own_h - dh).abs().numpy()
                    largest = z.abs().clamp(max=1e30).max().item()
                    assert (error <= 100 * slack * size * largest)[~edge].all()
                    l1 = (own.double() - torch.from_numpy(exact)[:, mine(ends)]).abs().sum(1)
                    dist.all_reduce(l1)
                    served = truth["served"] & ~edge
                    allowed = truth["bound"] + 100 * slack * size[:, 0]
                    assert (l1.numpy() <= allowed)[served].all()
                    assert (l1.numpy() <= 100 * slack * size[:, 0])[~truth["served"] & ~edge].all()


def ends_of_blocks() -> None:
    """The gradient at the kept entries is one rank's bits, and so are values but for the order in
    which states merge: 1e-16 of what an entropy or a dropped mass is the difference of."""
    for kind in sparse_cases.KINDS:
        z, t = sparse_cases.rows(kind, 3, 12, V)
        z = z.float()
        g = sparse_cases.signs(4, len(z))[6]
        for options in ({"tail_mass": 1e-2}, {"tail_mass": 1e-3, "tail_entries": 192}):
            alone, dz, _ = of_logits(z, t, g, None, **options)
            stats, own, _ = of_logits(z, t, g, ALIGNED, **options)
            for got, right in zip(values(stats), values(alone), strict=True):
                np.testing.assert_allclose(got.detach(), right.detach(), rtol=2e-7, atol=1e-13)
            assert_bitwise_equal(own, dz[:, mine(ALIGNED)])


# Relative error (Frobenius) of gradients against those of one rank: products of other shapes round
# logits of 16 bits otherwise now and then, and d_hidden is summed in another order.
NEAR = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def near_gradients_of(dtype: torch.dtype) -> Callable[[Tensor, Tensor, Tensor], None]:
    def near(ours: Tensor, truth: Tensor, whole: Tensor) -> None:
        assert (ours - truth).double().norm() <= NEAR[dtype] * whole.double().norm()

    return near


def one_head(ends: Any, dtype: torch.dtype, kind: str, **ways: Any) -> None:
    n = 37
    h, w, t = problem(3, n, 48, V, dtype)
    mask = cases.mask(3, n)
    # A softcap of 15 flattens all rows.
    tail = {"plain": 1e-3, "all": 0.1}[kind]
    options = {"mask": mask, "extras": (*EXTRAS, *DROPPED), "tail_mass": tail, **ways}
    options |= cases.chain(kind, 3, n, V)
    near_gradient = near_gradients_of(dtype)

    def near_and_masked(ours: Tensor, truth: Tensor, whole: Tensor) -> None:
        near_gradient(ours, truth, whole)
        assert ours.shape != h.shape or (ours[~mask] == 0).all()

    expected, _ = compare_with_one_rank(
        partial(ll.linear_token_stats, targets=t), {"hidden": h, "weight": w}, ends, options,
        outputs=values, loss=partial(weighted, g=cases.upstream(3, n)),
        near=lambda ours, truth: compare(ours[:3], truth[:3], dtype),
        near_gradient=near_and_masked,
    )  # fmt: skip
    served = (expected.extras[DROPPED[0]] <= tail) & mask
    assert served.any()
    assert not served[mask].all()


def options_of_the_head() -> None:
    least = ll.plan(37, 48, V, "float32", one_pass=False, tail_mass=1e-3).total_bytes
    for ends in layouts():
        for dtype in cases.DTYPES:
            for kind in ("plain", "all"):
                one_head(ends, dtype, kind)
        one_head(ends, torch.float32, "all", memory_budget=least)
        one_head(ends, torch.float32, "plain", tail_entries=192)
        one_head(ends, torch.bfloat16, "all", logits_dtype=torch.float32)
        one_head(ends, torch.float32, "all", batch_invariant=True)


def only_requested_gradients() -> None:
    h, w, t = problem(10, 20, 32, V, torch.float32)
    g = cases.upstream(10, 20)
    for ends in layouts():
        local, leaf = part(ends, {"tail_mass": 1e-3}), w.detach()[mine(ends)].clone()
        stats = ll.linear_token_stats(h, leaf.requires_grad_(), t, **local)
        both = gradients_of(stats, g, [h, leaf])
        frozen = ll.linear_token_stats(h, leaf.detach(), t, **local)
        assert_bitwise_equal(gradients_of(frozen, g, [h])[0], both[0])
        frozen = ll.linear_token_stats(h.detach(), leaf, t, **local)
        assert_bitwise_equal(gradients_of(frozen, g, [leaf])[0], both[1])
        for mask, by in ((torch.zeros(20, dtype=torch.bool), 1.0), (None, 0.0)):
            stats = ll.linear_token_stats(h, leaf, t, mask=mask, **local)
            for nothing in torch.autograd.grad(by * stats.logp.sum(), (h, leaf)):
                assert not nothing.any()
        with torch.no_grad():
            stats = ll.linear_token_stats(h, leaf, t, extras=DROPPED, **local)
        expected = ll.linear_token_stats(h, w, t, extras=DROPPED, tail_mass=1e-3)
        assert_values(stats.extras[DROPPED[0]], expected.extras[DROPPED[0]], torch.float32)


def padded_shards() -> None:
    """Rows of the weight beyond the vocabulary, impossible by their bias, are never kept."""
    h, w, t = problem(4, 20, 32, V, torch.float32)
    g, width = cases.upstream(4, 20), -(-V // WORLD)
    padded = torch.cat((w.detach(), torch.randn(width * WORLD - V, 32)))
    own = padded[RANK * width : (RANK + 1) * width].clone().requires_grad_()
    valid = min((RANK + 1) * width, V) - RANK * width
    bias = torch.where(torch.arange(width) < valid, 0.0, -float("inf"))
    local = part([(rank * width, 0) for rank in range(WORLD)], {"tail_mass": 1e-3})
    stats = ll.linear_token_stats(h, own, t, bias=bias, **local)
    right = gradients_of(ll.linear_token_stats(h, w, t, tail_mass=1e-3), g, [h, w])
    got = gradients_of(stats, g, [h, own])
    assert off(got[0], right[0]) <= NEAR[torch.float32]
    assert_gradients(got[1][:valid], right[1][RANK * width : RANK * width + valid], torch.float32,
                     scale=100)  # fmt: skip
    assert not got[1][valid:].any()


# ---- the loss


def linear_policy_loss() -> None:
    """Masked tokens, tokens without an advantage, a budget, tail_mass and shards, all at once."""
    for ends in ([tuple(min(x, 2500) for x in pair) for pair in whole] for whole in layouts()):
        for name in ("ppo", "grpo", "clip_cov", "gspo", "top_entropy"):
            one_loss(ends, name, torch.float32, {})
        for dtype in cases.DTYPES:
            torch.manual_seed(5)
            options = {"bias": torch.randn(2500), "temperature": 0.5, "softcap": 30.0}
            one_loss(ends, "ppo", dtype, options)


def one_loss(ends: Any, name: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    data = batch(3)
    # Half the rows are peaked at some token.
    data["hidden"][::2] = 2.5 * data["weight"][torch.arange(2 * 6).view(2, 6) * 100]
    data["hidden"], data["weight"] = (data[k].to(dtype) for k in ("hidden", "weight"))
    data["advantages"][:, ::3] = 0.0
    spec = dataclasses.replace(spec_of(name), entropy=ll.EntropyBonus(0.05), kl=None)
    # so few that not all rows are served
    tail = {"tail_mass": 0.05, "tail_entries": 64}
    options = {**inputs_of(spec, data), **tail, **options}
    options["memory_budget"] = ll.plan(24, 8, 2500, dtype, **tail).total_bytes
    given = {k: data.pop(k) for k in LEAVES}
    expected, out = compare_with_one_rank(
        partial(ll.linear_policy_loss, **data, spec=spec), given, ends, options,
        outputs=loss_outputs, loss=lambda out: out.loss * 0.7,
        near=lambda ours, truth: compare(ours[:3], truth[:3], dtype),
        near_gradient=near_gradients_of(dtype),
    )  # fmt: skip
    assert tuple(out.metrics) == tuple(expected.metrics)
    rows = "actor/support_rows"
    assert 0 < out.metrics[rows] < 1
    assert torch.equal(out.metrics[rows], expected.metrics[rows])
    for key in SUPPORT_METRICS:
        np.testing.assert_allclose(out.metrics[key], expected.metrics[key], rtol=NEAR[dtype] + 1e-4)


# ---- what is not as it should be, and torch's other tools


def errors() -> None:
    h, w, t = (x.detach() for x in problem(5, 20, 32, V, torch.float32))
    ends = LAYOUTS["uneven"]
    own, local = w[mine(ends)], part(ends, {"tail_mass": 1e-3})

    def stats(weight: Tensor = own, **change: Any) -> Any:
        leaf = weight.clone().requires_grad_()
        return ll.linear_token_stats(h.abs() + 1, leaf, t, **{**local, **change})

    for poison, text in ((float("nan"), "a NaN"), (float("inf"), "a +inf")):
        bad = own.clone()
        if RANK == WORLD - 1:
            bad[-1] = poison
        message = f"linear_token_stats: row 0: its logits hold {text}"
        assert refusal(ValueError, lambda: stats(bad)) == message  # noqa: B023
    for name, change in (
        ("tail_mass", {"tail_mass": 1e-3 * (1 + RANK)}),
        ("tail_entries", {"tail_entries": 64 * (1 + RANK)}),
        ("whether there are extras of what is dropped", {"extras": DROPPED[: min(RANK, 1)]}),
    ):
        message = refusal(ValueError, lambda: stats(**change))  # noqa: B023
        assert f"{name} must be the same on every rank of vocab_group" in message
    message = refusal(ValueError, lambda: stats(memory_budget=9000))
    assert "memory_budget must be at least" in message
    # what one rank alone fails at
    kind = ValueError if RANK == 0 else RuntimeError
    message = refusal(kind, lambda: stats(tail_mass=1e-7 if RANK == 0 else 1e-3))
    assert "tail_mass must be 0 or >= 1e-5" in message
    stats()


def compiled() -> None:
    from logitless.inputs.options import Tail
    from logitless.ops.head.stats_op import linear_stats
    from logitless.ops.head.tiling import Tiling
    from logitless.ops.rows.arguments import RowArguments
    from logitless.ops.sharding.shard import Shard
    from tests.support.opcheck import check_op

    h, w, t = problem(11, 20, 32, V, torch.float32)
    ends = LAYOUTS["even"]
    own, local = w.detach()[mine(ends)].clone().requires_grad_(), part(ends, {"tail_mass": 1e-3})
    data = {"old_logp": torch.full((20,), -1.0), "advantages": torch.linspace(-1, 1, 20),
            "mask": cases.mask(8, 20)}  # fmt: skip

    def f(hidden: Tensor, weight: Tensor) -> Tensor:
        stats = ll.linear_token_stats(hidden, weight, t, **local)
        out = ll.linear_policy_loss(hidden, weight, t, **data, spec=ll.presets["ppo"], **local)
        return (stats.logp + stats.entropy).sum() + out.loss

    eager, right = f(h, own), torch.autograd.grad(f(h, own), (h, own))
    loss = torch.compile(f, fullgraph=True, backend="aot_eager")(h, own)
    assert_bitwise_equal(loss, eager)
    for ours, theirs in zip(torch.autograd.grad(loss, (h, own)), right, strict=True):
        assert off(ours, theirs) <= 1e-6
    h, w, t = problem(12, 9, 16, 3000, torch.float32)
    ends = [(0, 1000), (1000, 3000)]
    w = w.detach()[mine(ends)].clone().requires_grad_()
    shard = Shard(dist.group.WORLD.group_name, [bound for pair in ends for bound in pair])
    rows = RowArguments(t.contiguous(), None, None, None, 1.0, 1.0, 0.0, "cpu")
    tiling = Tiling(4, 2048, 0, torch.float32, 0, "", torch.float32)
    check_op(linear_stats, h, w, rows, True, Tail(1e-2), tiling, shard, None, None)


if __name__ == "__main__":
    run(
        against_one_rank_and_the_oracle, ends_of_blocks, options_of_the_head,
        only_requested_gradients, padded_shards, linear_policy_loss, errors,
        *([compiled] if WORLD == 2 else []),
    )  # fmt: skip
