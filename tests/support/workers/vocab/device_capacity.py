"""active_capacity on two ranks with parts of the vocabulary, by the kernels of a device: what ranks
without it find. See shards.py; the device is named behind its arguments."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import logitless as ll
from tests.support.device.devices import Device
from tests.support.heads import batch, problem
from tests.support.tolerances import assert_bitwise_equal
from tests.support.workers.vocab.shards import (
    LAYOUTS,
    RANK,
    H,
    N,
    V,
    group,
    mine,
    refusal,
    run,
    same_on_all_ranks,
)

DEVICE = Device(*sys.argv[4:6])
ACTIVE = torch.arange(N) % 2 == 1
COUNT = int(ACTIVE.sum())


def stats_of(ends: Any, capacity: int | None) -> list[Tensor]:
    """logp, entropy, an extra and gradients of a head whose other rows are not even numbers."""
    h, w, t = problem(5, N, H, V, torch.float32)
    h = h.detach().masked_fill(~ACTIVE[:, None], float("nan"))
    h, w = leaves = [x.requires_grad_() for x in DEVICE.put(h, w[mine(ends)])]
    t, mask = DEVICE.put(torch.where(ACTIVE, t, -100), ACTIVE)
    stats = ll.linear_token_stats(
        h, w, t, mask=mask, extras=("varentropy",), backend=DEVICE.backend,
        active_capacity=capacity, vocab_start=ends[RANK][0], **group(),
    )  # fmt: skip
    found = [stats.logp, stats.entropy, stats.extras["varentropy"]]
    return [*found, *torch.autograd.grad(sum(x.sum() for x in found[:2]), leaves)]


def loss_of(ends: Any, capacity: int | None) -> list[Tensor]:
    """loss, logp and gradients of 17 active tokens of 24."""
    data: dict[str, Any] = {name: DEVICE.put(x)[0] for name, x in batch().items()}
    start, stop = (min(x, len(data["weight"])) for x in ends[RANK])
    data["weight"] = data["weight"][start:stop].clone()
    leaves = [data[name].requires_grad_() for name in ("hidden", "weight")]
    out = ll.linear_policy_loss(
        **data, spec=ll.presets["ppo"], backend=DEVICE.backend, active_capacity=capacity,
        vocab_start=start, **group(),
    )  # fmt: skip
    return [out.loss.detach().view(1), out.logp, *torch.autograd.grad(out.loss / 3, leaves)]


def same(ours: list[Tensor], right: list[Tensor], exact: bool) -> None:
    # of all results but the gradient of weight, whose columns are this rank's
    same_on_all_ranks(*ours[:-1])
    for a, b in zip(ours, right, strict=True):
        assert b.isfinite().all()
        if exact:
            assert_bitwise_equal(a, b)
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


def statistics() -> None:
    for ends in (LAYOUTS["uneven"], LAYOUTS["empty"]):
        right = stats_of(ends, None)
        assert all(x.abs().max() > 0 for x in right if len(x))
        for capacity in (COUNT, COUNT + 3):
            same(stats_of(ends, capacity), right, exact=capacity == COUNT)


def losses() -> None:
    """As planned."""
    right = loss_of(LAYOUTS["uneven"], None)
    for capacity in (17, 20, 24):
        same(loss_of(LAYOUTS["uneven"], capacity), right, exact=False)


def more_rows_than_there_is_room_for() -> None:
    """Each rank has the same NaN and is told the same: none waits for another. What they do next is
    as ever."""
    ends = LAYOUTS["uneven"]
    right = stats_of(ends, None)
    said = f"active_capacity must be at least the number of active rows, {COUNT}, got {COUNT - 1}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOGITLESS_CHECK", "1")
        assert said in refusal(ValueError, lambda: stats_of(ends, COUNT - 1))
        patch.setenv("LOGITLESS_CHECK", "0")
        with patch.context() as later:
            later.setattr("logitless.ops.rows.arguments.raise_found", lambda device: None)
            ours = stats_of(ends, COUNT - 1)
        assert ours[0].isnan().sum() == COUNT - 1
        assert ours[3].isnan().all(1).sum() == COUNT - 1
        assert ours[4].isnan().all()
        numbers = [x.nan_to_num(nan=7.0) for x in ours[:-1]]
        same_on_all_ranks(*numbers)
        DEVICE.wait()
        assert said in refusal(RuntimeError, lambda: stats_of(ends, COUNT))
    same(stats_of(ends, COUNT), right, exact=True)


if __name__ == "__main__":
    run(statistics, losses, more_rows_than_there_is_room_for)
