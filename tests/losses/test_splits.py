"""Micro-batches and ranks: any split that keeps what a loss needs together gives the batch's loss.

Whole sequences for losses per sequence, anything for losses per token; a cut sequence is an error.
"""

from __future__ import annotations

import pathlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitless import reference
from logitless.loss.evaluate.inputs import BatchStats
from logitless.loss.spec import PolicyLossSpec
from logitless.ops.batch_stats import batch_stats
from logitless.ops.policy_loss import policy_loss
from tests.support.losses.loss_outcomes import coefficients
from tests.support.losses.loss_specs import SPECS, Batch, make_batch

BATCH = make_batch(40)


def spec_of(name: str) -> PolicyLossSpec:
    spec = SPECS[name]
    return replace(spec, max_length=77) if spec.aggregation.endswith("norm") else spec


def stats_of(batch: Batch, spec: PolicyLossSpec, **options: Any) -> BatchStats:
    return batch_stats(
        batch.logp, batch.advantages, batch.mask, spec, old_logp=batch.old_logp,
        entropy=batch.entropy, entropy_change=batch.entropy_change,
        rollout_logp=batch.rollout_logp, token_ids=batch.token_ids, seed=0, step=0, **options,
    )  # fmt: skip


def parts(
    batch: Batch, spec: PolicyLossSpec, stats: BatchStats, cuts: list[Any], **options: Any
) -> tuple[float, dict[str, float], np.ndarray]:
    """(loss, metrics, g_logp) added up over micro-batches; `cuts` index the first axis."""
    results = [
        coefficients(*piece.inputs, spec, **piece.optional, batch=stats, **options)[1]
        for piece in map(batch.rows, cuts)
    ]
    metrics: dict[str, float] = {}
    for result in results:
        for name, value in result.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + value
    g_logp = np.zeros(batch.mask.shape)
    for cut, result in zip(cuts, results, strict=True):
        g_logp[cut] = result.g_logp.reshape(g_logp[cut].shape)
    return sum(r.loss for r in results), metrics, g_logp


def check(
    found: tuple[float, dict[str, float], np.ndarray], batch: Batch, spec: PolicyLossSpec
) -> None:
    loss, metrics, g_logp, _ = reference.policy_loss(
        *batch.inputs, spec, entropy_change=batch.entropy_change, **batch.optional
    )
    assert found[0] == pytest.approx(loss, rel=1e-12, abs=1e-14)
    for name, value in metrics.items():
        assert found[1][name] == pytest.approx(value, rel=1e-12, abs=1e-14), name
    np.testing.assert_allclose(found[2], g_logp, rtol=1e-13, atol=1e-16)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_split_into_whole_sequences(data: st.DataObject) -> None:
    spec = spec_of(data.draw(st.sampled_from(sorted(SPECS))))
    order = data.draw(st.permutations(range(len(BATCH.mask))))
    places = data.draw(st.sets(st.integers(1, len(order) - 1)))
    cuts = [list(x) for x in np.split(np.array(order), sorted(places))]
    check(parts(BATCH, spec, stats_of(BATCH, spec), cuts), BATCH, spec)


PER_TOKEN = sorted(name for name in SPECS if not SPECS[name].per_sequence)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_split_at_all_of_losses_per_token(data: st.DataObject) -> None:
    """Cuts inside sequences, pieces in any order, some of a single token."""
    spec = SPECS[data.draw(st.sampled_from(PER_TOKEN))]
    flat = Batch(**{k: x.ravel() for k, x in vars(BATCH).items()})
    places = sorted(data.draw(st.sets(st.integers(1, flat.mask.size - 1), max_size=8)))
    cuts = data.draw(st.permutations(np.split(np.arange(flat.mask.size), places)))
    stats = stats_of(BATCH, spec)
    loss, metrics, g_logp = parts(flat, spec, stats, list(cuts))
    check((loss, metrics, g_logp.reshape(BATCH.mask.shape)), BATCH, spec)


def test_there_are_losses_of_both_kinds() -> None:
    assert 40 < len(PER_TOKEN) < len(SPECS) - 30
    assert len({spec.aggregation for spec in SPECS.values()}) == 5


# ---- cut sequences

CUT = ["grpo", "dr_grpo", "gspo", "gspo_token", "luspo", "gmpo", "vespo", "opsm", "correction_mis"]


COLUMNS, REST = (
    Batch(**{k: x[:, columns] for k, x in vars(BATCH).items()})
    for columns in (slice(None, 5), slice(5, None))
)


def got_one_cut() -> Any:
    return pytest.raises(ValueError, match="needs each sequence whole in one call, got one cut")


@pytest.mark.parametrize("name", CUT)
def test_a_cut_sequence_is_an_error(name: str) -> None:
    spec = spec_of(name)
    stats = stats_of(BATCH, spec)
    packed, cu_seqlens = REST.packed()
    for piece, options in ((COLUMNS, {}), (REST, {}), (packed, {"cu_seqlens": cu_seqlens})):
        with got_one_cut():
            policy_loss(*piece.inputs, spec, **piece.optional, batch=stats, **options)


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("border", [5, 20, 45])
def test_packed_tokens_cut_at_the_border_of_a_micro_batch_are_an_error(
    name: str, border: int
) -> None:
    """Of two micro-batches of whole and one cut sequence each, either is refused."""
    spec = spec_of(name)
    stats = stats_of(BATCH, spec)
    packed, cu_seqlens = BATCH.packed()
    assert border < cu_seqlens[-1] and border not in cu_seqlens
    for start, end in ((0, border), (border, int(cu_seqlens[-1]))):
        ends = np.unique(np.clip(cu_seqlens, start, end)) - start
        options = {"batch": stats, "cu_seqlens": ends.astype(np.int32)}
        piece = packed.rows(slice(start, end))
        with got_one_cut():
            policy_loss(*piece.inputs, spec, **piece.optional, **options)


def test_the_head_refuses_a_cut_sequence_too() -> None:
    torch = pytest.importorskip("torch")
    from logitless import linear_policy_loss

    spec = spec_of("gspo")
    stats = stats_of(BATCH, spec)
    shape = COLUMNS.mask.shape
    hidden, weight = torch.ones(*shape, 4, requires_grad=True), torch.ones(9, 4)
    data = (torch.from_numpy(x) for x in COLUMNS.inputs[1:])
    with got_one_cut():
        linear_policy_loss(
            hidden, weight, torch.zeros(shape, dtype=torch.int64), *data, spec,
            token_ids=torch.from_numpy(COLUMNS.token_ids), batch=stats,
        )  # fmt: skip


@pytest.mark.parametrize("name", CUT)
def test_what_counts_alone_tell_of_cut_sequences(name: str) -> None:
    """Without a batch no call knows the sequences; but a call that has tokens of all of them and
    not all tokens has cut one. Whole sequences in any number of calls are fine."""
    spec = spec_of(name)
    totals = stats_of(BATCH, spec).totals
    with got_one_cut():
        policy_loss(*COLUMNS.inputs, spec, **COLUMNS.optional, totals=totals)
    halves = [BATCH.rows(rows) for rows in (slice(0, 2), slice(2, None))]
    losses = [
        policy_loss(*half.inputs, spec, **half.optional, totals=totals).loss for half in halves
    ]
    expected = reference.policy_loss(*BATCH.inputs, spec, **BATCH.optional)[0]
    assert sum(losses) == pytest.approx(expected, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("name", CUT)
def test_a_batch_that_could_not_tell_is_refused(name: str) -> None:
    spec = spec_of(name)
    options = BATCH.optional | {"token_ids": None, "batch": stats_of(BATCH, spec)}
    with pytest.raises(ValueError, match="token_ids must be given with batch: cut sequences"):
        policy_loss(*BATCH.inputs, spec, **options)
    if spec.control is None and spec.correction is None:
        per_token = stats_of(BATCH, SPECS["ppo"])
        with pytest.raises(ValueError, match="batch must be made by batch_stats for a loss"):
            policy_loss(*BATCH.inputs, spec, **BATCH.optional, batch=per_token)


@pytest.mark.parametrize("name", CUT)
def test_packed_tokens_of_unknown_sequences_are_an_error(name: str) -> None:
    packed, _ = BATCH.packed()
    with pytest.raises(ValueError, match=r"needs padded .* or cu_seqlens"):
        policy_loss(*packed.inputs, spec_of(name), **packed.optional)


# ---- ranks


def _rank(rank: int, folder: str, names: list[str]) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)
    groups = {size: dist.new_group(list(range(size))) for size in (1, 2, 3)}
    shares = {1: [[0, 1, 2, 3, 4, 5]], 2: [[5, 0, 3], [1, 4, 2]], 3: [[1], [5, 4, 2], [3, 0]]}
    found: dict[str, Any] = {}
    for size, group in groups.items():
        if rank >= size:
            continue
        mine = BATCH.rows(shares[size][rank])
        for name in names:
            spec = spec_of(name)
            stats = stats_of(mine, spec, data_group=group)
            cuts = [[i] for i in range(len(mine.mask))][::-1]
            loss, metrics, g_logp = parts(mine, spec, stats, cuts, grad_scale=size)
            # gradients of ranks are averaged, as DDP does
            whole = torch.zeros(BATCH.mask.shape, dtype=torch.float64)
            whole[shares[size][rank]] = torch.from_numpy(g_logp) / size
            sums = torch.tensor([loss / size, *metrics.values()], dtype=torch.float64)
            dist.all_reduce(whole, group=group)
            dist.all_reduce(sums, group=group)
            found[f"{size}.{name}.g"] = whole.numpy()
            found[f"{size}.{name}.sums"] = sums.numpy()
            found[f"{size}.{name}.names"] = np.array(list(metrics))
    if rank == 0:
        np.savez(f"{folder}/found.npz", **found)
    dist.barrier()
    dist.destroy_process_group()


def test_one_to_three_ranks_of_micro_batches(tmp_path: pathlib.Path) -> None:
    """Every spec: loss, metrics and gradients of one batch, averaged over ranks by grad_scale."""
    torch = pytest.importorskip("torch")
    names = sorted(SPECS)
    torch.multiprocessing.spawn(_rank, (str(tmp_path), names), nprocs=3)
    found = np.load(tmp_path / "found.npz")
    for size in (1, 2, 3):
        for name in names:
            key = f"{size}.{name}"
            loss, *values = found[f"{key}.sums"]
            metrics = dict(zip(found[f"{key}.names"].tolist(), values, strict=True))
            check((loss, metrics, found[f"{key}.g"]), BATCH, spec_of(name))
