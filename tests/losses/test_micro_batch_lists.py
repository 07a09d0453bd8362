"""batch_stats of a list of micro-batches is that of their tokens in one array."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import logitless as ll
from logitless.loss.spec import PolicyLossSpec
from tests.support.losses.loss_specs import SPECS, Batch, make_batch

NAMES = ("logp", "advantages", "mask", "entropy", "entropy_change", "rollout_logp", "token_ids")


def call(parts: Any, spec: PolicyLossSpec, **more: Any) -> ll.BatchStats:
    """Of one batch, or of a list of them."""
    many = isinstance(parts, list)
    values = {
        name: [getattr(p, name) for p in parts] if many else getattr(parts, name)
        for name in (*NAMES, "old_logp")
    }
    return ll.batch_stats(
        values.pop("logp"), values.pop("advantages"), values.pop("mask"), spec, seed=5, step=9,
        **{**values, **more},
    )  # fmt: skip


def same(a: ll.BatchStats, b: ll.BatchStats) -> None:
    for name, x, y in zip(a._fields, a, b, strict=True):
        if name == "sequences":
            x, y = (np.asarray(v)[np.lexsort(np.asarray(v).T)] for v in (x, y))
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=name)


@pytest.mark.parametrize("name", SPECS)
def test_padded_micro_batches_of_their_own_widths(name: str) -> None:
    batch, spec = make_batch(60), SPECS[name]
    expected = call(batch, spec)
    cuts = [batch.rows([5, 0]), batch.rows([1]), batch.rows([4, 2, 3])]
    same(call(cuts, spec), expected)
    width = int(np.flatnonzero(batch.rows([1]).mask[0]).max(initial=0)) + 1
    cuts[1] = Batch(**{k: x[:, :width] for k, x in vars(cuts[1]).items()})
    same(call(cuts, spec), expected)


@pytest.mark.parametrize("name", ["many_kl_cov", "gspo", "clip_cov_sequence"])
def test_packed_ones_and_both(name: str) -> None:
    batch, spec = make_batch(61), SPECS[name]
    expected = call(batch, spec)
    (first, cu), second = batch.rows([0, 3, 1]).packed(), batch.rows([2, 4, 5])
    other, cu_other = second.packed()
    same(call([first, other], spec, cu_seqlens=[cu, cu_other]), expected)


def test_tensors_and_advantages_of_sequences() -> None:
    batch, spec = make_batch(62), SPECS["many_kl_cov"]
    expected = call(batch, spec)
    halves = [batch.rows([0, 1, 2]), batch.rows([3, 4, 5])]
    t = [{k: torch.from_numpy(np.ascontiguousarray(getattr(h, k))) for k in NAMES} for h in halves]
    a = [torch.from_numpy(np.nan_to_num(h.advantages).max(1) + np.nan_to_num(h.advantages).min(1))
         for h in halves]  # fmt: skip
    found = ll.batch_stats(
        [x["logp"] for x in t], a, tuple(x["mask"].int() for x in t), spec,
        token_ids=[x["token_ids"] for x in t], seed=5, step=9,
    )  # fmt: skip
    assert isinstance(found.selected, torch.Tensor)
    np.testing.assert_array_equal(found.selected.numpy(), expected.selected)
    assert found.mean_advantage == expected.mean_advantage


def test_the_widest_dtype_serves_all() -> None:
    batch, spec = make_batch(63), SPECS["many_kl_cov"]
    narrow = [batch.rows([0, 1, 2]), batch.rows([3, 4, 5])]
    one = Batch(**{
        k: x.astype(np.float32) if x.dtype == np.float64 else x for k, x in vars(narrow[0]).items()
    })  # fmt: skip
    wide = Batch(**{
        k: x.astype(np.float64) if x.dtype == np.float32 else x for k, x in vars(one).items()
    })  # fmt: skip
    same(call([one, narrow[1]], spec), call([wide, narrow[1]], spec))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"advantages": None}, "advantages must be a list of 2 arrays"),
        ({"mask": [1]}, "mask must be a list of 2 arrays, one a micro-batch as logp is"),
        ({"token_ids": "whole"}, "token_ids must be a list of 2 arrays"),
        ({"logp": []}, "logp must hold at least one micro-batch"),
    ],
)
def test_lists_that_are_none(change: dict[str, Any], words: str) -> None:
    batch = make_batch(64)
    parts = [batch.rows([0, 1, 2]), batch.rows([3, 4, 5])]
    values = {
        k: [getattr(p, k) for p in parts] for k in ("logp", "advantages", "mask", "token_ids")
    }
    values |= change
    with pytest.raises(ValueError, match=f"^batch_stats: {words}"):
        ll.batch_stats(**values, spec=SPECS["kl_cov"], seed=0, step=0)


def test_ids_that_repeat_in_two_micro_batches() -> None:
    batch = make_batch(65)
    with pytest.raises(ValueError, match="token_ids must be unique"):
        call([batch.rows([0, 1]), batch.rows([1, 2])], SPECS["kl_cov"])


def test_the_same_shape_of_arrays_is_asked_of_each() -> None:
    batch = make_batch(66)
    a, b = batch.rows([0, 1]), batch.rows([2, 3])
    with pytest.raises(ValueError, match=r"mask must be shaped like logp, \[2, 20\]"):
        ll.batch_stats(
            [a.logp, b.logp], [a.advantages, b.advantages], [a.mask, b.mask.T], SPECS["ppo"],
            token_ids=[a.token_ids, b.token_ids], seed=0, step=0,
        )  # fmt: skip
