"""What an optimizer batch's tokens have in common, found on the device that they are on: the same
tokens are selected as on the CPU, bit for bit, and the host reads nothing, neither then nor in the
losses that are given it."""

from __future__ import annotations

import pathlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import logitless as ll
from logitless.backends import registry
from logitless.backends.row_kernels import errors
from logitless.loss.evaluate.inputs import BatchStats
from logitless.loss.spec import ClipCov, PolicyLossSpec
from tests.support.device.devices import Device, losses_there
from tests.support.device.token_batches import (
    assert_same,
    here,
    sized,
    skip_slow,
    stats_arrays,
    stats_of,
    there,
)
from tests.support.device.waits import NothingIsRead
from tests.support.losses.loss_calls import ours as policy_loss_of
from tests.support.losses.loss_specs import SELECTING, SPECS, Batch, make_batch

# The papers' fractions select one token of a small batch.
MANY = sorted(SELECTING.keys() - ll.presets.keys())


def many_tokens(seed: int, shape: tuple[int, int]) -> Batch:
    """Of rows longer than those that `make_batch` numbers."""
    batch = make_batch(seed, shape, np.float32)
    ids = 5 * np.random.default_rng(seed).permutation(batch.mask.size).reshape(shape)
    return replace(batch, token_ids=ids)


def stats_there(batch: Batch, spec: PolicyLossSpec, device: Device, **packing: Any) -> BatchStats:
    given = there({**stats_arrays(batch), **packing}, device)
    with NothingIsRead():
        return ll.batch_stats(**given, spec=spec, seed=1, step=2)


@pytest.mark.parametrize("packed", [False, True], ids=["padded64", "packed32"])
@pytest.mark.parametrize("name", SPECS)
def test_the_same_as_on_the_cpu(device: Device, kernels: Any, name: str, packed: bool) -> None:
    """And the same loss of a micro-batch."""
    skip_slow(device, name, packed)
    padded = make_batch(51, dtype=np.float32 if packed else np.float64)
    spec = sized(SPECS[name], padded)
    batch, cu_seqlens = padded.packed() if packed else (padded, None)
    packing = {} if cu_seqlens is None else {"cu_seqlens": cu_seqlens}
    expected = stats_of(batch, spec, **packing)
    found = stats_there(batch, spec, device, **packing)
    assert found.mean_logp.device == torch.device(device.name)
    assert found.mean_logp.shape == found.totals.tokens.shape == ()
    assert_same(found, expected)
    errors.raise_now(found.mean_logp.device)
    # two sequences of it
    part, packing = padded.rows(np.array([1, 4])), {}
    arrays = {k: np.ascontiguousarray(x) for k, x in vars(part).items()}
    draws = spec.selects_in_call and isinstance(spec.control, ClipCov)
    moved = there(arrays, device)
    moved["logp"].requires_grad_()
    torch.manual_seed(3)
    with NothingIsRead() if not draws else torch.no_grad():
        loss, metrics = policy_loss_of(moved, spec, batch=found)
    torch.manual_seed(3)
    truth, numbers = policy_loss_of(arrays, spec, batch=expected)
    assert loss.item() == pytest.approx(float(truth), rel=2e-7, abs=1e-9)
    assert metrics.keys() == numbers.keys()
    for key, x in metrics.items():
        assert x.item() == pytest.approx(float(numbers[key]), rel=1e-6, abs=1e-8), key
    # a batch of a device serves NumPy arrays
    torch.manual_seed(3)
    assert policy_loss_of(arrays, spec, batch=found)[0] == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("name", MANY)
def test_many_tokens(device: Device, kernels: Any, name: str) -> None:
    """Of several blocks, many of them equal; and from micro-batches of other shapes and dtypes."""
    spec, batch = SELECTING[name], many_tokens(3, (56, 150))
    for coarse in ("logp", "entropy", "entropy_change"):
        vars(batch)[coarse][:] = (vars(batch)[coarse] * 8).round() / 8
    expected = stats_of(batch, spec)
    assert len(expected.selected) > 1
    assert_same(stats_there(batch, spec, device), expected)
    parts = [batch.rows(np.arange(*ends)) for ends in ((0, 1), (1, 30), (30, 56))]
    lists = {
        k: [there(stats_arrays(part)[k], device) for part in parts] for k in stats_arrays(batch)
    }
    lists["entropy"][1] = lists["entropy"][1].double()
    with NothingIsRead():
        found = ll.batch_stats(**lists, spec=spec, seed=1, step=2)
    assert_same(found, expected)


@pytest.mark.parametrize("name", ["many_kl_cov", "gspo", "tea", "m2po"])
def test_no_token(device: Device, kernels: Any, name: str) -> None:
    """None at all, and none that is valid."""
    batch = make_batch(5)
    batch.mask[:] = False
    for some in (batch, batch.rows(np.arange(0))):
        found = stats_there(some, SPECS[name], device)
        assert_same(found, stats_of(some, SPECS[name]))
        assert found.cpu().totals == (0, 0, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("valid", [None, 1, 2])
def test_covariance(device: Device, kernels: Any, dtype: Any, valid: int | None) -> None:
    batch = make_batch(4, (50, 170), dtype)
    if valid is not None:
        batch.mask.reshape(-1)[np.flatnonzero(batch.mask)[valid:]] = False
    arrays = (batch.logp, batch.advantages, batch.mask)
    expected = ll.covariance(*arrays)
    with NothingIsRead():
        found = ll.covariance(*(there(x, device) for x in arrays))
    assert found.count.dtype == torch.int64 and found.mean.device == torch.device(device.name)
    assert numbers_of(found) == numbers_of(expected)
    errors.raise_now(found.mean.device)


def test_quantiles_of_a_round_number_of_tokens(device: Device, kernels: Any) -> None:
    """A share of them is a whole number, whose float64s lie as near as those of the CPU."""
    logp, advantages = np.random.default_rng(8).normal(size=(2, 5000))
    arrays = (logp, advantages, np.ones(5000, np.bool_))
    found = ll.covariance(*(there(x, device) for x in arrays))
    assert numbers_of(found) == numbers_of(ll.covariance(*arrays))


def test_covariance_of_no_token(device: Device, kernels: Any) -> None:
    x = torch.full((3,), float("nan"), device=device.name)
    found = ll.covariance(x, x, x > 0)
    assert here(found.count) == here(found.mean) == here(found.correlation) == 0
    assert all(q.isnan() for q in found.quantiles.values())


def numbers_of(report: ll.Covariance) -> list[float]:
    return [float(x) for x in (*report[:-2], *report.quantiles.values(), report.above_one)]


@pytest.mark.parametrize(
    "what, spec",
    [("logp", "ppo"), ("advantages", "ppo"), ("entropy", "many_top_entropy"),
     ("entropy_change", "clip_v"), ("old_logp", "many_clip_cov_ppo"), ("twice", "many_kl_cov"),
     ("negative", "many_kl_cov")],
)  # fmt: skip
def test_a_wrong_token_is_flagged(
    device: Device, kernels: Any, monkeypatch: pytest.MonkeyPatch, what: str, spec: str
) -> None:
    """With its place, by a later call; with LOGITLESS_CHECK in the call itself."""
    batch = many_tokens(7, (9, 150))
    place, other = np.flatnonzero(batch.mask)[[170, 90]]
    if what in ("twice", "negative"):
        ids = batch.token_ids.reshape(-1)
        ids[place] = ids[other] if what == "twice" else -3
    else:
        getattr(batch, what).reshape(-1)[place] = np.nan
    found = stats_there(batch, SPECS[spec], device)
    with pytest.raises(RuntimeError, match=f"batch_stats: row {place}: a value of its token"):
        errors.raise_now(found.mean_logp.device)
    monkeypatch.setenv("LOGITLESS_CHECK", "1")
    with pytest.raises(ValueError, match=f"batch_stats: row {place}: a value of its token"):
        ll.batch_stats(**there(stats_arrays(batch), device), spec=SPECS[spec], seed=1, step=2)
    if what in ("logp", "advantages"):
        given = (there(getattr(batch, x), device) for x in ("logp", "advantages", "mask"))
        with pytest.raises(ValueError, match=f"covariance: row {place}: a value of its token"):
            ll.covariance(*given)


def test_a_sequence_that_a_micro_batch_cuts_is_flagged(device: Device, kernels: Any) -> None:
    spec, batch = SPECS["gspo"], many_tokens(7, (9, 150))
    known = stats_there(batch, spec, device)
    row = int(batch.mask.sum(axis=1).argmax())
    place = int(np.flatnonzero(batch.mask[row])[0])
    cut = {k: np.array(x) for k, x in vars(batch).items()}
    cut["mask"][row, place] = False
    place = row * 150 + int(np.flatnonzero(cut["mask"][row])[0])
    for given, stats in ((cut, known), (vars(batch), stats_there(batch, SPECS["ppo"], device))):
        with NothingIsRead():
            policy_loss_of(there(given, device), spec, batch=stats)
        first = place if given is cut else int(np.flatnonzero(batch.mask)[0])
        with pytest.raises(RuntimeError, match=f"policy_loss: row {first}: .*sequence is not who"):
            errors.raise_now(known.mean_logp.device)


def test_token_ids(device: Device, kernels: Any) -> None:
    """What the CPU raises for is -1."""
    sequences, places = there(np.array([7, 3, -1, 2**62]), device), torch.arange(5)
    with NothingIsRead():
        found = ll.token_ids(sequences[:, None], places.to(device.name).int(), 4)
    assert found.tolist() == [[28, 29, 30, 31, -1], [12, 13, 14, 15, -1], [-1] * 5, [-1] * 5]


@pytest.mark.parametrize("name", ["many_kl_cov", "many_clip_cov", "tea", "top_entropy"])
def test_linear_policy_loss(device: Device, kernels: Any, name: str) -> None:
    """One pass and apart, of the same bits as with what the host has read."""
    spec, rng = SPECS[name], np.random.default_rng(3)
    batch = make_batch(8, (5, 12), np.float32)
    n = batch.mask.size
    flat = {k: np.nan_to_num(x.reshape(n)) for k, x in vars(batch).items()}
    given = there(flat, device)
    found = ll.batch_stats(
        given["logp"], given["advantages"], given["mask"], spec, entropy=given["entropy"],
        token_ids=given["token_ids"], cu_seqlens=torch.arange(0, n + 1, 12, dtype=torch.int32),
        seed=1, step=2,
    )  # fmt: skip
    h, w = (there(rng.normal(size=(k, 16)).astype(np.float32), device) for k in (n, 40))
    targets = there(rng.integers(0, 40, n), device)
    results = []
    for known in (found, found.cpu()):
        leaf = h.clone().requires_grad_()
        out = ll.linear_policy_loss(
            leaf, w, targets, given["old_logp"], given["advantages"], given["mask"], spec,
            token_ids=given["token_ids"], batch=known, backend=device.backend,
            cu_seqlens=torch.arange(0, n + 1, 12, dtype=torch.int32),
        )  # fmt: skip
        out.loss.backward()
        results.append((out.loss.detach(), leaf.grad, out.metrics))
    (loss, grad, metrics), (truth, expected, numbers) = results
    assert loss.item() == truth.item() and loss.item() != 0
    np.testing.assert_array_equal(here(grad), here(expected))
    assert {k: x.item() for k, x in metrics.items()} == {k: x.item() for k, x in numbers.items()}


def test_a_compiled_loss(device: Device, kernels: Any) -> None:
    """One graph, whatever batch it is given."""
    spec, batch = SPECS["many_kl_cov"], make_batch(9, (5, 12), np.float32)
    arrays = there({k: np.ascontiguousarray(x) for k, x in vars(batch).items()}, device)
    graphs = 0

    def counting(module: Any, _: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return module.forward

    compiled = torch.compile(policy_loss_of, fullgraph=True, backend=counting)
    for seed in (1, 2, 3):
        known = ll.batch_stats(**there(stats_arrays(make_batch(9, (5, 12), np.float32)), device),
                               spec=spec, seed=1, step=seed)  # fmt: skip
        arrays["logp"] = arrays["logp"] - 0.01
        expected = policy_loss_of(arrays, spec, batch=known)
        assert compiled(arrays, spec, batch=known)[0].item() == expected[0].item()
    assert graphs == 1
    torch.compiler.reset()


# ---- three processes


def _rank(rank: int, folder: str, name: str, backend: str, names: list[str]) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)
    device = Device(backend, name)
    with pytest.MonkeyPatch.context() as patch:
        losses_there(device, patch)
        batch = make_batch(12)
        # unequal shares; and two ranks whose tokens are all masked
        for cut in (3, 0):
            mine = batch.rows([[0, 5, 2], [4], [3, 1]][rank] if cut else np.arange(6))
            if not cut and rank != 1:
                mine.mask[:] = False
            given, group = there(stats_arrays(mine), device), dist.group.WORLD
            out: dict[str, Any] = {}
            for spec in names:
                with NothingIsRead():
                    stats = ll.batch_stats(
                        **given, spec=SPECS[spec], data_group=group, seed=1, step=2
                    )
                read = stats.cpu()
                out[f"{spec}.selected"] = read.selected.numpy()
                out[f"{spec}.means"] = np.array([read.mean_advantage, read.mean_logp])
                out[f"{spec}.totals"] = np.array(read.totals)
                out[f"{spec}.bounds"] = np.array([*read.log_bounds, *read.change_range])
            tokens = (given[x] for x in ("logp", "advantages", "mask"))
            with NothingIsRead():
                report = ll.covariance(*tokens, data_group=group)
            out["covariance"] = numbers_of(report)
            np.savez(f"{folder}/{cut}-{rank}.npz", **out)
    dist.destroy_process_group()


def test_three_ranks_find_what_one_finds(
    device: Device, kernels: Any, tmp_path: pathlib.Path
) -> None:
    """The CPU's, of all tokens, bit for bit."""
    assert registry.token_kernels_of(torch.zeros(1, device=device.name)) is kernels
    names = ["many_clip_cov_ppo", "many_kl_cov", "many_top_entropy", "many_clip_b", "many_clip_v",
             "m2po_tight", "steer"]  # fmt: skip
    arguments = (str(tmp_path), device.name, device.backend, names)
    spawn: Any = torch.multiprocessing.spawn  # type: ignore[attr-defined]
    spawn(_rank, arguments, nprocs=3)
    batch = make_batch(12)
    report = ll.covariance(batch.logp, batch.advantages, batch.mask)
    for cut in (3, 0):
        ranks = [np.load(tmp_path / f"{cut}-{rank}.npz") for rank in range(3)]
        for name in names:
            one = stats_of(batch, SPECS[name])
            both = np.concatenate([r[f"{name}.selected"] for r in ranks])
            assert sorted(both.tolist()) == one.selected.tolist(), name
            for r in ranks:
                assert r[f"{name}.means"].tolist() == [one.mean_advantage, one.mean_logp]
                assert r[f"{name}.totals"].tolist() == [one.totals[0], one.totals[1], 3]
                assert r[f"{name}.bounds"].tolist() == [*one.log_bounds, *one.change_range]
        for r in ranks:
            assert r["covariance"].tolist() == numbers_of(report)
