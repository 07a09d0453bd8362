"""How often the host waits for a device in a head of sets: as often as docs/sampling.md says."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

import logitless as ll
from logitless.ops.rows.sets import MaskedRows
from tests.support.device.devices import Device
from tests.support.device.waits import as_on_device, promised, waits_of

N, H, V = 12, 8, 60


class Call(NamedTuple):
    mask: bool = False
    gaps: bool = False  # rows of the mask that have no set
    weight_grad: str = "dense"


CALLS = {
    "`sampling_mask`": Call(),
    '`sampling_mask` and `weight_grad="rows"`': Call(weight_grad="rows"),
    "`sampling_mask` in which some rows have no set": Call(gaps=True),
    "`sampling_mask` and a mask": Call(mask=True),
    "`sampling_mask` and a mask, in which some rows have no set": Call(mask=True, gaps=True),
}


def waits(device: Device, call: Call, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], ...]:
    """Of the forward and of the backward, by name."""
    g = torch.Generator().manual_seed(0)
    h, w = (torch.randn(n, H, generator=g) for n in (N, V))
    ids = [[i, (5 * i + 7) % V, V - 1] for i in range(N)]
    if call.gaps:
        ids[3] = []
    # a row outside of the mask has none either, as an engine returns them
    ids[0] = [] if call.mask else ids[0]
    sampling_mask = ll.SamplingMask.from_lists(ids)
    h, w, targets, mask = device.put(h, w, torch.arange(N), torch.arange(N) > 0)
    as_on_device(device, monkeypatch)
    leaves = [h.requires_grad_(), w.requires_grad_()]

    def run() -> torch.Tensor:
        stats = ll.linear_token_stats(
            h, w, targets, mask=mask if call.mask else None, sampling_mask=sampling_mask,
            weight_grad=call.weight_grad, backend=device.backend,
        )  # fmt: skip
        return stats.logp.sum() + stats.entropy.sum()

    return waits_of(run, leaves, monkeypatch)


def test_every_call_of_the_table_is_tried() -> None:
    assert promised("docs/sampling.md").keys() == CALLS.keys()


@pytest.mark.parametrize("name", CALLS)
def test_the_host_waits_as_often_as_it_must(
    device: Device, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = waits(device, CALLS[name], monkeypatch)
    assert tuple(map(len, seen)) == promised("docs/sampling.md")[name], seen


def test_what_the_host_does_not_say_is_waited_for(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the test above could not fail."""
    among = MaskedRows.among
    monkeypatch.setattr(MaskedRows, "among", lambda *given, **_: among(*given)._replace(named=None))
    rows = Call(weight_grad="rows")
    assert tuple(map(len, waits(device, rows, monkeypatch))) == (0, 1)
