"""batch_stats: one selection for the optimizer batch, on any split, order and number of ranks."""

from __future__ import annotations

import pathlib
import re
from typing import Any

import numpy as np
import pytest

from logitless import reference
from logitless.entropy.covariance import Covariance, covariance
from logitless.loss.evaluate.inputs import BatchStats
from logitless.loss.spec import PolicyLossSpec
from logitless.ops.batch_stats import batch_stats, token_ids
from tests.support.losses.loss_outcomes import coefficients
from tests.support.losses.loss_specs import MAX_LENGTH, SELECTING, SPECS, Batch, chosen, make_batch


def stats_of(batch: Batch, spec: PolicyLossSpec, **options: Any) -> BatchStats:
    return batch_stats(
        batch.logp, batch.advantages, batch.mask, spec,
        **{"entropy": batch.entropy, "entropy_change": batch.entropy_change,
           "rollout_logp": batch.rollout_logp, "token_ids": batch.token_ids, "seed": 5, "step": 9,
           **options},
    )  # fmt: skip


@pytest.mark.parametrize("spec", SELECTING.values(), ids=SELECTING)
def test_selection_is_the_oracles(spec: PolicyLossSpec) -> None:
    batch = make_batch(8)
    for old_logp in (None, batch.old_logp):
        stats = stats_of(batch, spec, old_logp=old_logp)
        expected = chosen(batch, spec, old=old_logp is not None, seed=5, step=9)
        assert stats.selected.dtype == np.int64 and stats.selected.tolist() == expected
    _, mean_a, mean_lp = reference.covariance(batch.logp, batch.advantages, batch.mask)
    assert (stats.mean_advantage, stats.mean_logp) == (mean_a, mean_lp)
    assert stats.count == stats.totals.tokens == batch.mask.sum()
    assert stats.totals.sequences == batch.mask.any(axis=1).sum() < 6
    assert (stats.seed, stats.step, stats.control) == (5, 9, spec.control)


@pytest.mark.parametrize("spec", SELECTING.values(), ids=SELECTING)
def test_order_and_packing_change_nothing(spec: PolicyLossSpec) -> None:
    batch = make_batch(9)
    expected = stats_of(batch, spec)
    packed, cu_seqlens = batch.packed()
    others = {
        "shuffled": stats_of(batch.rows(np.array([3, 0, 5, 1, 4, 2])), spec),
        "transposed tokens": stats_of(Batch(**{k: x.T for k, x in vars(batch).items()}), spec),
        "packed": stats_of(packed, spec, cu_seqlens=cu_seqlens),
    }
    for name, stats in others.items():
        assert stats.selected.tolist() == expected.selected.tolist(), name
        assert stats[1:4] == expected[1:4], name


@pytest.mark.parametrize("spec", SELECTING.values(), ids=SELECTING)
def test_micro_batches_act_on_the_selected_tokens_alone(spec: PolicyLossSpec) -> None:
    """The share of selected tokens adds up to exactly k, however the batch is cut."""
    batch = make_batch(10)
    stats = stats_of(batch, spec)
    for cut in ([[0, 1, 2, 3, 4, 5]], [[0], [1], [2, 3], [4], [5]]):
        share = sum(
            coefficients(*p.inputs, spec, **p.optional, batch=stats)[1].metrics[
                "actor/cov_selected"
            ]
            for p in map(batch.rows, cut)
        )
        assert share * stats.count == pytest.approx(len(stats.selected), abs=1e-9)


def test_tokens_clipped_by_the_ratio_are_no_candidates() -> None:
    batch, spec = make_batch(11), SELECTING["many_clip_cov_ppo"]
    clipped = reference.ratio_clipped(batch.logp - batch.old_logp, batch.advantages, spec.surrogate)
    bad = set(batch.token_ids[clipped & batch.mask].tolist())
    runs = [stats_of(batch, spec, old_logp=batch.old_logp, step=s) for s in range(20)]
    assert bad and not any(bad & set(run.selected.tolist()) for run in runs)
    assert any(bad & set(stats_of(batch, spec, step=s).selected.tolist()) for s in range(20))


def test_no_control_and_micro_scope_select_nothing() -> None:
    assert stats_of(make_batch(), SPECS["ppo"]).selected.size == 0


# ---- three processes


def numbers(report: Covariance) -> list[float]:
    return [*report[:-2], *report.quantiles.values(), report.above_one]


def _rank(rank: int, folder: str, names: list[str]) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)
    batch = make_batch(12)
    # unequal shares; and two ranks whose tokens are all masked
    for cut in (3, 0):
        mine = batch.rows([[0, 5, 2], [4], [3, 1]][rank] if cut else list(range(6)))
        if not cut and rank != 1:
            mine.mask[:] = False
        group = dist.group.WORLD
        out: dict[str, Any] = {}
        for name in names:
            stats = stats_of(mine, SPECS[name], old_logp=mine.old_logp, data_group=group)
            out[f"{name}.selected"] = stats.selected
            out[f"{name}.means"] = np.array([stats.mean_advantage, stats.mean_logp])
            out[f"{name}.totals"] = np.array(stats.totals)
        report = covariance(mine.logp, mine.advantages, mine.mask, data_group=group)
        out["covariance"] = numbers(report)
        np.savez(f"{folder}/{cut}-{rank}.npz", **out)
    dist.destroy_process_group()


def test_three_ranks_select_what_one_selects(tmp_path: pathlib.Path) -> None:
    """Bit for bit: ids, means, counts and the covariance report."""
    torch = pytest.importorskip("torch")
    names = sorted(SELECTING)
    torch.multiprocessing.spawn(_rank, (str(tmp_path), names), nprocs=3)
    batch = make_batch(12)
    report = covariance(batch.logp, batch.advantages, batch.mask)
    for cut in (3, 0):
        ranks = [np.load(tmp_path / f"{cut}-{rank}.npz") for rank in range(3)]
        for name in names:
            one = stats_of(batch, SPECS[name], old_logp=batch.old_logp)
            both = np.concatenate([r[f"{name}.selected"] for r in ranks])
            assert sorted(both.tolist()) == one.selected.tolist(), name
            for r in ranks:
                assert r[f"{name}.means"].tolist() == [one.mean_advantage, one.mean_logp]
                assert r[f"{name}.totals"].tolist() == [one.totals[0], one.totals[1], 3]
        for r in ranks:
            assert r["covariance"].tolist() == numbers(report)


# ---- token ids and errors


def test_token_ids() -> None:
    ids = token_ids(np.array([7, 3]), np.arange(4), 10)
    assert ids.dtype == np.int64
    assert ids.tolist() == [[70, 71, 72, 73], [30, 31, 32, 33]]
    packed = token_ids(np.array([7, 7, 3]), np.array([0, 1, 0]), 10)
    assert packed.tolist() == [70, 71, 30]
    padded = token_ids(np.array([[7], [3]]), np.array([[0, 1], [2, 3]], np.int32), 10)
    assert padded.tolist() == [[70, 71], [32, 33]]
    torch = pytest.importorskip("torch")
    tensor = token_ids(torch.tensor([7, 3]), torch.arange(4), 10)
    assert tensor.dtype == torch.int64 and tensor.tolist() == ids.tolist()


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((np.array([1]), np.array([10]), 10), ValueError, ["positions", "[0, 10)", "10"]),
        ((np.array([1]), np.array([-1]), 10), ValueError, ["positions", "-1"]),
        ((np.array([-1]), np.array([1]), 10), ValueError, ["sequence_ids", "-1"]),
        ((np.array([2**60]), np.array([1]), 10), ValueError, ["sequence_ids", "2^63"]),
        ((np.array([1.0]), np.array([1]), 10), TypeError, ["sequence_ids", "float64"]),
    ],
)
def test_bad_token_ids(arguments: Any, error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as caught:
        token_ids(*arguments)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_bad_calls() -> None:
    batch, spec = make_batch(), SELECTING["many_clip_cov"]
    twice = batch.token_ids.copy()
    first, second = np.argwhere(batch.mask)[:2]
    twice[tuple(second)] = twice[tuple(first)]
    flat = Batch(**{k: x.ravel() for k, x in vars(batch).items()})
    cases: list[tuple[Batch, str, dict[str, Any], list[str]]] = [
        (batch, "many_clip_cov", {"token_ids": twice}, ["token_ids", "unique"]),
        (batch, "many_clip_cov", {"token_ids": -1 - batch.token_ids}, ["token_ids", "negative"]),
        (batch, "many_clip_cov", {"seed": -1}, ["seed", "2^64", "-1"]),
        (batch, "many_clip_cov", {"step": 2**64}, ["step", "2^64"]),
        (batch, "many_clip_cov", {"old_logp": batch.logp * np.nan}, ["old_logp", "nan", "[0, 0]"]),
        (batch, "top_entropy", {"entropy": None}, ["control needs entropy", "entropy=None"]),
        (batch, "top_entropy", {"entropy": batch.logp * np.nan}, ["entropy", "nan", "[0, 0]"]),
        (flat, "kl_cov_clip", {}, ["cu_seqlens=None"]),
    ]
    for given, name, options, words in cases:
        with pytest.raises(ValueError, match=re.escape(words[0])) as caught:
            stats_of(given, SPECS[name], **options)
        assert all(word in str(caught.value) for word in words), str(caught.value)
    assert spec.selects and batch.mask.shape[1] <= MAX_LENGTH
