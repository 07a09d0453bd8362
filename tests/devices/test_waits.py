"""How often the host waits for a device in a call: as often as docs/gpu.md says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import logitless as ll
from logitless.backends import registry
from logitless.ops.head import policy_op, statistics
from logitless.ops.head.backward import counted
from logitless.ops.head.tiling import Tiling
from tests.support.device.devices import Device
from tests.support.device.waits import as_on_device, promised, waits_of
from tests.support.heads import B, T, V, batch
from tests.support.plans import APART, CHUNKS, force

pytestmark = pytest.mark.fakes

LEAVES = ("hidden", "weight")
DIFFERENTIATED = (*LEAVES, "logits", "logp")


class Call(NamedTuple):
    """A call of the table: what it takes of a batch, and its options."""

    function: Callable[..., Any]
    takes: tuple[str, ...]
    options: dict[str, Any]
    needs: str = "linear_token_stats"  # of a backend
    # that is forced; None: the planner's
    plan: Any = APART


def stats(*takes: str, **options: Any) -> Call:
    return Call(ll.linear_token_stats, (*LEAVES, "targets", *takes), options)


def loss(plan: Any, **options: Any) -> Call:
    takes = (*LEAVES, "targets", "old_logp", "advantages", "mask")
    return Call(ll.linear_policy_loss, takes, {"spec": ll.presets["ppo"], **options}, plan=plan)


def divergence(*takes: str, **options: Any) -> Call:
    given = (*LEAVES, "other_hidden", "other_weight", *takes)
    return Call(ll.linear_divergence, given, options, "linear_divergence")


MASKED = stats("mask")
CALLS = {
    "`token_stats`, with or without a mask": Call(
        ll.token_stats, ("logits", "targets", "mask"), {}, "token_stats"
    ),
    "`policy_loss`": Call(
        ll.policy_loss, ("logp", "old_logp", "advantages", "mask"), {"spec": ll.presets["ppo"]}
    ),
    "`linear_token_stats`": stats(),
    "`linear_token_stats` with a mask": MASKED,
    "`linear_token_stats` with a mask and `tail_mass`": MASKED._replace(
        options={"tail_mass": 1e-2}, needs="tail_mass", plan=None
    ),
    "`linear_token_stats` with a mask and `entropy_top_p`": MASKED._replace(
        options={"entropy_top_p": 0.8}, needs="entropy_top_p"
    ),
    "`linear_policy_loss`, forward and backward apart": loss(APART),
    "`linear_policy_loss` in one pass": loss(CHUNKS["whole"]),
    "`linear_policy_loss` in one pass of four chunks of rows": loss(CHUNKS["short"]),
    "`linear_token_stats` and `linear_policy_loss` with `active_capacity`": loss(
        CHUNKS["whole"], active_capacity=B * T
    ),
    "`linear_divergence`": divergence(),
    "`linear_divergence` with a mask": divergence("mask"),
    "`linear_divergence` with a mask and `active_capacity`": divergence(
        "mask", active_capacity=B * T
    ),
}


def data_on(device: Device) -> dict[str, Tensor]:
    given = batch()
    given["logits"] = (given["hidden"] @ given["weight"].T).contiguous()
    given["logp"] = given["old_logp"] + 0.1
    given["other_hidden"], given["other_weight"] = torch.randn(B, T, 6), torch.randn(V, 6)
    return dict(zip(given, device.put(*given.values()), strict=True))


def waits(device: Device, call: Call, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], ...]:
    """Of the forward and of the backward, by name."""
    backend = registry.get(device.backend)
    if not backend.has(call.needs).ok:
        pytest.skip(f"{device.backend}: {backend.has(call.needs).reason}")
    data = data_on(device)
    as_on_device(device, monkeypatch)
    if call.plan is not None:
        force(monkeypatch, call.plan)
    given = [data[name] for name in call.takes if name != "mask"]
    leaves = [data[x].requires_grad_() for x in call.takes if x in DIFFERENTIATED]
    options = {"mask": data["mask"]} if "mask" in call.takes else {}
    own = {} if call.function is ll.policy_loss else {"backend": device.backend}

    def run() -> Tensor:
        out = call.function(*given, **options, **call.options, **own)
        total: Tensor = out.loss / 3 if hasattr(out, "loss") else out[0].sum() + out[1].sum()
        return total

    return waits_of(run, leaves, monkeypatch)


def test_every_call_of_the_table_is_tried() -> None:
    assert promised("docs/gpu.md").keys() == CALLS.keys()


@pytest.mark.parametrize("name", CALLS)
def test_the_host_waits_as_often_as_it_must(
    device: Device, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = waits(device, CALLS[name], monkeypatch)
    assert tuple(map(len, seen)) == promised("docs/gpu.md")[name], seen


def test_a_mask_that_is_counted_twice_is_found(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the test above could not fail; nor where a loss's gradient is looked at."""
    with monkeypatch.context() as patch:
        patch.setattr(statistics, "counted", lambda mask, tiling, backend: None)
        assert len(waits(device, MASKED, patch)[1]) == 2
    with monkeypatch.context() as patch:
        patch.setattr(policy_op, "_looks", lambda given: True)
        assert len(waits(device, loss(CHUNKS["whole"]), patch)[1]) == 1


def test_places_are_those_of_the_mask(device: Device) -> None:
    """None where the host knows them: no mask, a fixed number of rows."""
    tiling = Tiling.asked("", torch.float32, torch.float32)
    served_by = registry.get(device.backend)
    mask = device.put(torch.tensor([True, False, True]))[0]
    found = counted(mask, tiling, served_by)
    assert found is not None and found.tolist() == [0, 2]
    assert counted(None, tiling, served_by) is None
    assert counted(mask, tiling._replace(capacity=2), served_by) is None
