"""One of two or three gloo ranks, each with a part of the vocabulary: everything equals one rank.

Run by test_vocab_parallel.py, see shards.py. Every rank knows the whole problem and computes
it alone as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import logitless as ll
from tests.support import cases
from tests.support.heads import batch, inputs_of, problem, spec_of
from tests.support.plans import APART, CHUNKS, LEAVES, force, took_one_pass
from tests.support.row_outputs import EXTRAS
from tests.support.tolerances import assert_bitwise_equal, assert_gradients, assert_values
from tests.support.workers.vocab.shards import (
    LAYOUTS,
    RANK,
    SLACK,
    WORLD,
    H,
    N,
    V,
    compare,
    compare_with_one_rank,
    gradients_of,
    group,
    layouts,
    loss_outputs,
    mine,
    part,
    refusal,
    run,
    values,
    weighted,
)

# ---- values and gradients


def token_stats() -> None:
    g, mask = cases.upstream(1, N), cases.mask(1, N)
    for ends in layouts():
        for dtype in cases.DTYPES:
            for kind in ("plain", "all"):
                z, t = cases.logits(1, N, V, dtype), cases.targets(1, N, V)
                z[~mask] = float("nan")
                options = {"mask": mask, "extras": EXTRAS, **cases.chain(kind, 1, N, V)}

                def near(ours: list[Tensor], truth: list[Tensor]) -> None:
                    for got, right in zip(ours, truth, strict=True):
                        if got.dtype == torch.int64:
                            assert torch.equal(got, right)
                        else:
                            assert_values(got, right.detach(), dtype)  # noqa: B023

                def near_gradient(ours: Tensor, truth: Tensor, _: Tensor) -> None:
                    scale = 100 if ours.ndim == 1 else SLACK[dtype] / 10  # noqa: B023
                    assert_gradients(ours, truth, ours.dtype, scale=scale)

                compare_with_one_rank(
                    partial(ll.token_stats, targets=t), {"logits": z}, ends, options,
                    outputs=values, loss=partial(weighted, g=g), near=near,
                    near_gradient=near_gradient,
                )  # fmt: skip


def selected_ids() -> None:
    """Log-probs of ids that lie on any rank, and the gradients of hidden, weight, bias, logits."""
    ids = torch.tensor([7, 0, V - 1, 7, V // 2, V // 3, 2])
    g = torch.linspace(-1.0, 1.0, N * len(ids)).reshape(N, len(ids))
    h, w, t = problem(21, N, H, V, torch.float32)
    mask = cases.mask(21, N)
    same = torch.Generator().manual_seed(22)
    low, up = torch.randn(2, H, generator=same), torch.randn(V, 2, generator=same) / 8

    def loss(stats: ll.TokenStats) -> Tensor:
        return (stats.selected * g.to(stats.selected.dtype)).sum() + stats.entropy.sum()

    for ends in layouts():
        for dtype in (torch.float32, torch.float64):
            for kind in cases.CHAINS:
                options = {"mask": mask, "selected_ids": ids, **cases.chain(kind, 21, N, V)}
                given = {"hidden": h.to(dtype), "weight": w.to(dtype)}
                logits = {"logits": (h @ w.t()).to(dtype)}
                for call, of in ((ll.linear_token_stats, given), (ll.token_stats, logits)):
                    compare_with_one_rank(
                        partial(call, targets=t), of, ends, options,
                        outputs=lambda stats: [stats.selected, *values(stats)], loss=loss,
                        near=lambda a, b: compare(a, b, dtype),  # noqa: B023
                        near_gradient=lambda a, b, _: assert_gradients(a, b, a.dtype, scale=200),
                    )  # fmt: skip
        both = [x.detach().clone().requires_grad_() for x in (h, low)]
        ours = ll.linear_token_stats(
            both[0], w.detach()[mine(ends)], t, adapter=(both[1], up[mine(ends)], 0.5),
            selected_ids=ids, **part(ends, {}),
        )  # fmt: skip
        alone = [x.detach().clone().requires_grad_() for x in (h, low)]
        one = ll.linear_token_stats(
            alone[0], w.detach(), t, adapter=(alone[1], up, 0.5), selected_ids=ids
        )
        compare([ours.selected], [one.selected], torch.float32)
        pairs = zip(*(torch.autograd.grad(loss(x), y) for x, y in ((ours, both), (one, alone))),
                    strict=True)  # fmt: skip
        for got, right in pairs:
            assert_gradients(got, right, torch.float32, scale=500)


def token_stats_of_padded_batches_in_place() -> None:
    z, t = cases.logits(2, 12, V, torch.float32), cases.targets(2, 12, V).view(3, 4)
    for ends in layouts():
        leaf = z.view(3, 4, V)[..., mine(ends)].clone().requires_grad_()
        memory = leaf * 1.0
        stats = ll.token_stats(memory, t, inplace_backward=True, **part(ends, {}))
        whole = z.view(3, 4, V).clone().requires_grad_()
        expected = ll.token_stats(whole, t)
        assert_values(stats.logp, expected.logp.detach(), torch.float32)
        (got,) = torch.autograd.grad(stats.entropy.sum(), leaf)
        (right,) = torch.autograd.grad(expected.entropy.sum(), whole)
        assert_gradients(got, right[..., mine(ends)], torch.float32)


BUDGETS = (None, "1GiB", 700_000)  # the default, keep, recompute


def linear_token_stats() -> None:
    for ends in layouts():
        for dtype in cases.DTYPES:
            for kind in ("plain", "all"):
                for budget in BUDGETS:
                    one_head(ends, dtype, kind, {"memory_budget": budget, "logits_dtype": dtype})
        one_head(ends, torch.bfloat16, "all", {"logits_dtype": torch.float32})
        one_head(ends, torch.float32, "all", {"batch_invariant": True})


def near_gradients_of(dtype: torch.dtype) -> Callable[[Tensor, Tensor, Tensor], None]:
    return lambda ours, truth, _: assert_gradients(ours, truth, ours.dtype, scale=SLACK[dtype])


def one_head(ends: Any, dtype: torch.dtype, kind: str, ways: dict[str, Any]) -> None:
    h, w, t = problem(1, N, H, V, dtype)
    options = {"mask": cases.mask(1, N), "extras": EXTRAS, **ways, **cases.chain(kind, 1, N, V)}
    compare_with_one_rank(
        partial(ll.linear_token_stats, targets=t), {"hidden": h, "weight": w}, ends, options,
        outputs=values, loss=partial(weighted, g=cases.upstream(1, N)),
        near=lambda ours, truth: compare(ours[:-1], truth[:-1], dtype),
        near_gradient=near_gradients_of(dtype),
    )  # fmt: skip


def only_requested_gradients() -> None:
    h, w, t = problem(7, N, H, V, torch.float32)
    for ends in layouts():
        weight = w.detach()[mine(ends)]
        expected = torch.autograd.grad(ll.linear_token_stats(h, w, t).logp.sum(), (h, w))
        stats = ll.linear_token_stats(h, weight, t, **part(ends, {}))
        (got,) = torch.autograd.grad(stats.logp.sum(), h)
        assert_gradients(got, expected[0], torch.float32, scale=10)
        leaf = weight.clone().requires_grad_()
        stats = ll.linear_token_stats(h.detach(), leaf, t, **part(ends, {}))
        (got,) = torch.autograd.grad(stats.logp.sum(), leaf)
        assert_gradients(got, expected[1][mine(ends)], torch.float32, scale=10)
        nothing = torch.zeros(N, dtype=torch.bool)
        stats = ll.linear_token_stats(h, leaf, t, mask=nothing, **part(ends, {}))
        got, zero = torch.autograd.grad(stats.logp.sum(), (h, leaf))
        assert not got.any()
        assert not zero.any()
        with torch.no_grad():
            assert not ll.linear_token_stats(h, leaf, t, **part(ends, {})).logp.requires_grad


def padded_shards() -> None:
    """Rows of the weight beyond the vocabulary: cut away by the caller, or impossible by a bias."""
    h, w, t = problem(3, N, H, V, torch.float32)
    expected = ll.linear_token_stats(h, w, t, extras=EXTRAS)
    width = -(-V // WORLD)
    padded = torch.cat((w.detach(), torch.randn(width * WORLD - V, H)))
    own = padded[RANK * width : (RANK + 1) * width].clone().requires_grad_()
    valid = min((RANK + 1) * width, V) - RANK * width
    cut = ll.linear_token_stats(
        h, own[:valid], t, extras=EXTRAS, vocab_start=RANK * width, **group()
    )
    compare(values(cut), values(expected), torch.float32)
    bias = torch.where(torch.arange(width) < valid, 0.0, -float("inf"))
    masked = ll.linear_token_stats(
        h, own, t, bias=bias, extras=EXTRAS, vocab_start=RANK * width, **group()
    )
    compare(values(masked), values(expected), torch.float32)
    g = cases.upstream(3, N)
    right = gradients_of(expected, g, [w])[0][RANK * width : RANK * width + valid]
    for stats in (cut, masked):
        (got,) = gradients_of(stats, g, [own])
        assert_gradients(got[:valid], right, torch.float32, scale=10)
        assert not got[valid:].any()


# ---- the loss


def linear_policy_loss() -> None:
    data = batch(3)
    for ends in ([tuple(min(x, 2500) for x in pair) for pair in whole] for whole in layouts()):
        for name in ("ppo", "grpo", "clip_cov", "kl_cov", "dapo", "gspo", "top_entropy"):
            one_loss(data, ends, name, torch.float32, {})
        for way in (APART, *CHUNKS.values()):
            with pytest.MonkeyPatch.context() as patch:
                force(patch, way)
                for dtype in cases.DTYPES:
                    options = {"bias": torch.randn(2500), "temperature": 0.8, "softcap": 20.0}
                    assert one_loss(data, ends, "ppo", dtype, options) == (way is not APART)


def one_loss(
    data: dict[str, Tensor], ends: Any, name: str, dtype: torch.dtype, options: dict[str, Any]
) -> bool:
    """Whether it was made in one pass."""
    torch.manual_seed(5)
    if "bias" in options:
        dist.broadcast(options["bias"], 0)
    spec = dataclasses.replace(spec_of(name), entropy=ll.EntropyBonus(0.05))
    options = {**inputs_of(spec, data), **options}
    given = {k: data[k].to(dtype) for k in LEAVES}
    rest = {k: v for k, v in data.items() if k not in LEAVES}
    ids = torch.tensor([7, 0, 2499, 7, 1250])
    options = {**options, "extras": ("sum_p2", "mean_logit"), "selected_ids": ids}
    expected, out = compare_with_one_rank(
        partial(ll.linear_policy_loss, **rest, spec=spec), given, ends, options,
        outputs=lambda out: [out.selected, *loss_outputs(out)], loss=lambda out: out.loss * 0.7,
        near=lambda ours, truth: compare(ours[:6], truth[:6], dtype),
        near_gradient=near_gradients_of(dtype),
    )  # fmt: skip
    assert out.metrics.keys() == expected.metrics.keys()
    assert took_one_pass(out) == took_one_pass(expected)
    return took_one_pass(out)


# ---- what is not as it should be


def errors() -> None:
    h, w, t = (x.detach() for x in problem(5, N, H, V, torch.float32))
    ends = LAYOUTS["uneven"]
    own, local = w[mine(ends)], part(ends, {})

    def stats(hidden: Tensor = h, weight: Tensor = own, targets: Tensor = t, **change: Any) -> Any:
        return ll.linear_token_stats(hidden, weight, targets, **{**local, **change})

    # a range of columns that another rank has as well, and one that none has
    for shift in (-1, 1):
        start = local["vocab_start"] + (shift if RANK == WORLD - 1 else 0)
        message = refusal(ValueError, lambda: stats(vocab_start=start))  # noqa: B023
        assert "must cover a vocabulary from 0 on, without gap or overlap" in message
        assert f"[{ends[-1][0] + shift}, {V + shift})" in message
    # a NaN and an infinity that only one rank sees, and a target that nobody has
    for poison, text in ((float("nan"), "a NaN"), (float("inf"), r"a +inf")):
        bad = own.clone()
        if RANK == WORLD - 1:
            bad[-1] = poison
        assert refusal(ValueError, lambda: stats(h.abs() + 1, bad)) == (  # noqa: B023
            f"linear_token_stats: row 0: its logits hold {text}"
        )
    mask = torch.arange(N) > 4
    for target in (V, -1):
        changed = t.clone()
        changed[2], changed[7] = target, target
        message = refusal(ValueError, lambda: stats(targets=changed, mask=mask))  # noqa: B023
        assert f"row 7: target {target} is outside [0, {V})" in message
    impossible = torch.full((len(own),), -float("inf"))
    assert "row 0: it has no finite logit" in refusal(ValueError, lambda: stats(bias=impossible))
    # what one rank alone fails at
    bias = torch.zeros(len(own) + (RANK == 1))
    message = refusal(ValueError if RANK == 1 else RuntimeError, lambda: stats(bias=bias))
    assert f"bias must be [V] = [{ends[1][1] - ends[1][0]}]" in message
    assert RANK == 1 or "rank 1 of vocab_group failed: ValueError: linear_token" in message
    # a budget that only the widest shard does not fit
    message = refusal(ValueError, lambda: stats(memory_budget=9000))
    assert "memory_budget must be at least" in message
    # ranks that ask for different things
    other = torch.where(torch.arange(N) == RANK, 0, t)
    for name, change in (
        ("targets (their checksum)", {"targets": other}),
        ("temperature", {"temperature": 1.0 + RANK}),
        ("temperature", {"temperature": torch.full((N,), 1.0 + RANK)}),
        ("whether there are extras", {"extras": EXTRAS[:RANK]}),
        ("the shape of targets", {"hidden": h[: N - RANK], "targets": t[: N - RANK]}),
        ("which of hidden, weight and bias", {"weight": own.clone().requires_grad_(RANK == 0)}),
    ):
        message = refusal(ValueError, lambda: stats(**change))  # noqa: B023
        assert f"{name} must be the same" in message or name in message, message
        assert "on every rank of vocab_group" in message
    sampled = {"seed": RANK, "step": 0, "row_ids": torch.arange(N), **local}
    assert "seed must be the same" in refusal(
        ValueError, lambda: ll.linear_sample(h, own, **sampled)
    )
    mixed = stats if RANK else lambda: ll.token_stats(h @ own.T, t, **local)
    assert "the op must be the same" in refusal(ValueError, mixed)
    data = batch(3)
    verl = ll.ClipCov(0.3, 0.01, 50.0, scope="micro")
    spec = dataclasses.replace(ll.presets["clip_cov"], control=verl)
    torch.manual_seed(RANK)
    loss = {**data, "weight": data["weight"][: 2500 if RANK == 0 else 0]}
    message = refusal(ValueError, lambda: ll.linear_policy_loss(**loss, spec=spec, **group()))
    assert "torch's CPU generator" in message
    # not built, and not for these
    apart = refusal(ValueError, lambda: stats(selected_ids=t[: 3 + RANK]))
    assert "selected_ids (their checksum) must be the same" in apart
    beyond = torch.tensor([1, V])
    outside = refusal(ValueError, lambda: stats(selected_ids=beyond))
    assert f"selected_ids must be in [0, {V}), got {V} at [1]" in outside
    torch_backend = refusal(NotImplementedError, lambda: stats(backend="torch"))
    assert "vocab_group is not built for backend 'torch'" in torch_backend
    arrays = [x.numpy() for x in (h, own, t)]
    for op, given in (
        (ll.linear_token_stats, arrays),
        (ll.token_stats, [arrays[0] @ arrays[1].T, arrays[2]]),
    ):
        message = refusal(ValueError, lambda: op(*given, **local))  # noqa: B023
        assert "vocab_group takes torch tensors" in message
    stats()


# ---- among torch's other tools


def dtensor() -> None:
    """A weight that is a DTensor over the ranks of vocab_group, its gradient one as well."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    h, w, t = (x.detach() for x in problem(6, N, H, V, torch.float32))
    h.requires_grad_()
    bias = torch.randn(V, generator=torch.Generator().manual_seed(1))
    mesh = init_device_mesh("cpu", (WORLD,))
    weight = distribute_tensor(w, mesh, [Shard(0)]).requires_grad_()
    cut_bias = distribute_tensor(bias, mesh, [Shard(0)])
    for vocab_start in (0, -(-V // WORLD) * RANK):
        whole = w.clone().requires_grad_()
        expected = ll.linear_token_stats(h, whole, t, bias=bias)
        stats = ll.linear_token_stats(
            h, weight, t, bias=cut_bias, vocab_start=vocab_start, **group()
        )
        assert_values(stats.logp, expected.logp.detach(), torch.float32)
        got, got_hidden = torch.autograd.grad(stats.entropy.sum(), (weight, h))
        right, right_hidden = torch.autograd.grad(expected.entropy.sum(), (whole, h))
        assert isinstance(got, DTensor)
        assert got.placements == (Shard(0),)
        assert_gradients(got.full_tensor(), right, torch.float32, scale=10)
        assert_gradients(got_hidden, right_hidden, torch.float32, scale=10)
    key = {"seed": 1, "step": 1, "row_ids": torch.arange(N)}
    sample = ll.linear_sample(h, weight, **key, **group())
    assert torch.equal(sample.token, ll.linear_sample(h, w, **key).token)
    data = batch(4)
    loss = ll.linear_policy_loss(**data, spec=ll.presets["ppo"]).loss
    data["weight"] = distribute_tensor(data["weight"], mesh, [Shard(0)])
    assert_values(
        ll.linear_policy_loss(**data, spec=ll.presets["ppo"], **group()).loss.view(1),
        loss.view(1), torch.float32,
    )  # fmt: skip
    # whose ranks may have other tokens, where nobody says that they have not
    assert "weight is a DTensor" in refusal(TypeError, lambda: ll.linear_token_stats(h, weight, t))
    for placement in (Replicate(), Shard(1)):
        other = distribute_tensor(w, mesh, [placement])
        message = refusal(
            ValueError,
            lambda: ll.linear_token_stats(h, other, t, **group()),  # noqa: B023
        )
        assert "weight as a DTensor must be Shard(0) over the ranks of vocab_group" in message
    assert "vocab_start must be left at 0" in refusal(
        ValueError, lambda: ll.linear_token_stats(h, weight, t, vocab_start=7, **group())
    )


def compiled() -> None:
    """A graph for every length, and the ops' registration by torch's own checker."""
    h, w, t = problem(8, N, H, V, torch.float32)
    ends = LAYOUTS["even"]
    own, local = w.detach()[mine(ends)].clone().requires_grad_(), part(ends, {})
    spec = ll.presets["ppo"]
    data = {"old_logp": ll.linear_token_stats(h, w, t).logp.detach() - 0.05,
            "advantages": torch.linspace(-1, 1, N), "mask": cases.mask(8, N)}  # fmt: skip

    def f(hidden: Tensor, weight: Tensor, t: Tensor, data: dict[str, Tensor]) -> tuple[Any, ...]:
        x = torch.tanh(hidden)
        stats = ll.linear_token_stats(x, weight, t, **local)
        rows = ll.token_stats(x @ weight.t(), t, **local)
        loss = ll.linear_policy_loss(x, weight, t, **data, spec=spec, **local).loss
        drawn = ll.linear_sample(x, weight, seed=1, step=2, row_ids=t, **local).token
        return loss + (stats.entropy * rows.logp).sum(), drawn

    graph = torch.compile(f, fullgraph=True, backend="aot_eager")
    for n in (N, N - 3):
        hidden = h.detach()[:n].clone().requires_grad_()
        arguments = (hidden, own, t[:n].clone(), {k: v[:n].clone() for k, v in data.items()})
        (loss, token), (eager, drawn) = graph(*arguments), f(*arguments)
        assert_bitwise_equal(loss, eager)
        assert torch.equal(token, drawn)
        right = torch.autograd.grad(eager, (hidden, own))
        for ours, theirs in zip(torch.autograd.grad(loss, (hidden, own)), right, strict=True):
            assert_gradients(ours, theirs, torch.float32, scale=5)


def registered() -> None:
    from logitless.inputs.options import EXACT
    from logitless.ops.head.stats_op import linear_stats
    from logitless.ops.head.tiling import Tiling
    from logitless.ops.rows.arguments import RowArguments
    from logitless.ops.rows.op import row_stats
    from logitless.ops.sharding.shard import Shard
    from tests.support.opcheck import check_op

    h, w, t = problem(15, 4, 8, 50, torch.float32)
    ends = [(0, 20), (20, 50), (50, 50)][:WORLD]
    w = w.detach()[mine(ends)].clone().requires_grad_()
    shard = Shard(dist.group.WORLD.group_name, [bound for pair in ends for bound in pair])
    rows = RowArguments(t, None, None, None, 1.0, 1.0, 0.0, "cpu")
    tiling = Tiling(4, 50, 0, torch.float32, 0, "", torch.float32)
    check_op(linear_stats, h, w, rows, True, EXACT, tiling, shard, None, None)
    logits = (h @ w.t()).detach().requires_grad_()
    check_op(row_stats, logits, rows, True, False, shard)


if __name__ == "__main__":
    run(
        token_stats, selected_ids, token_stats_of_padded_batches_in_place, linear_token_stats,
        only_requested_gradients, padded_shards, linear_policy_loss, errors, dtensor, registered,
        *([compiled] if WORLD == 2 else []),
    )  # fmt: skip
