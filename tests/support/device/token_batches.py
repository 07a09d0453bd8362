"""Batches of tokens on a device and on the host."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from logitless.loss.evaluate.inputs import BatchStats
from logitless.loss.spec import PolicyLossSpec
from logitless.ops.batch_stats import batch_stats
from tests.support.device.devices import Device
from tests.support.losses.loss_specs import Batch

# Where sums over a sequence or values of exp are in it, which are added in another order.
CLOSE = 1e-12
NUMBERS = ("mean_credit", "mean_importance", "log_bounds", "change_range", "likely",
           "selected_entropy")  # fmt: skip


def skip_slow(device: Device, name: str, packed: bool) -> None:
    """M2PO looks for its bound by 64 exact means one after the other, seconds of the interpreter:
    one kind of batch has to do."""
    if device.interpreted and "m2po" in name and not packed:
        pytest.skip("the packed batch is tried")


def there(x: Any, device: Device) -> Any:
    if isinstance(x, dict):
        return {name: there(value, device) for name, value in x.items()}
    return torch.from_numpy(np.ascontiguousarray(x)).to(device.name)


def here(x: Any) -> Any:
    return x.cpu().numpy() if isinstance(x, torch.Tensor) else x


def sized(spec: PolicyLossSpec, batch: Batch) -> PolicyLossSpec:
    if spec.aggregation == "seq-mean-token-sum-norm" and spec.max_length is None:
        return replace(spec, max_length=batch.mask.shape[1])
    return spec


def stats_arrays(batch: Batch) -> dict[str, Any]:
    """What batch_stats is given of a batch."""
    names = ("logp", "advantages", "mask", "old_logp", "entropy", "entropy_change", "rollout_logp",
             "token_ids")  # fmt: skip
    return {name: getattr(batch, name) for name in names}


def stats_of(batch: Batch, spec: PolicyLossSpec, **packing: Any) -> BatchStats:
    """Of its NumPy arrays."""
    return batch_stats(**stats_arrays(batch), spec=spec, seed=1, step=2, **packing)


def assert_same(found: BatchStats, expected: BatchStats) -> None:
    """`found` of a device, `expected` of NumPy arrays."""
    read = found.cpu()
    for name in ("selected", "sequences"):
        np.testing.assert_array_equal(getattr(read, name), getattr(expected, name), err_msg=name)
    for name in ("totals", "mean_advantage", "mean_logp", "count", "seed", "step", "control",
                 "correction", "surrogate"):  # fmt: skip
        assert getattr(read, name) == getattr(expected, name), name
    assert type(read.count) is type(read.totals.tokens) is int
    for name in NUMBERS:
        assert getattr(read, name) == pytest.approx(getattr(expected, name), rel=CLOSE), name
