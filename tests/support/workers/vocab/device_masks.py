"""sampling_mask by the kernels of a device on two ranks: what one rank of the CPU has. See
shards.py; the device is named behind its arguments."""

from __future__ import annotations

import sys
from typing import Any

import torch

import logitless as ll
from tests.support import cases
from tests.support.device.devices import Device
from tests.support.mask_cases import mask_of
from tests.support.tolerances import assert_gradients
from tests.support.workers.vocab.shards import (
    V,
    compare,
    layouts,
    mine,
    part,
    refusal,
    run,
    same_on_all_ranks,
    values,
)

DEVICE = Device(*sys.argv[4:6])
N, H = 9, 24
CPU = Device("cpu", "cpu")


def there(device: Device, options: dict[str, Any]) -> dict[str, Any]:
    return {k: x.to(device.name) if torch.is_tensor(x) else x for k, x in options.items()}


def masks() -> None:
    """Values, extras and gradients; rows with and without a set."""
    g = cases.upstream(3, N)
    h, w = (torch.randn(n, H, generator=torch.Generator().manual_seed(2)) for n in (N, V))
    t, mask = cases.targets(2, N, V), cases.mask(2, N)
    first, *others = layouts()
    for ends in (first, *others):
        for kind in ("few", "mixed", "borders"):
            # of the interpreter each row of d_weight takes milliseconds
            frozen = DEVICE.interpreted and (ends != first or kind != "few")
            known = {"sampling_mask": mask_of(kind, 1, t, V), "extras": ("argmax", "sum_p2")}
            found = []
            for where, columns, own in (
                (CPU, slice(0, V), {}),
                (DEVICE, mine(ends), part(ends, {})),
            ):
                given = there(where, {"targets": t, "mask": mask, **own})
                head = where.put(h, w[columns])
                leaves = [x.requires_grad_() for x in (head[:1] if frozen else head)]
                stats = ll.linear_token_stats(*head, **known, **given, backend=where.backend)
                on = [x.to(where.name) for x in g]
                loss = (stats.logp * on[0] + stats.entropy * on[1] + stats.lse * on[2]).sum()
                gradients = torch.autograd.grad(loss, leaves)
                found.append(([x.detach().cpu() for x in values(stats)], gradients))
            (right, of_one), (ours, of_ranks) = found
            same_on_all_ranks(*ours, of_ranks[0])
            compare(ours, right, torch.float32)
            assert len(of_ranks) == len(of_one) == 2 - frozen
            right_here = (of_one[0], *(d[mine(ends)] for d in of_one[1:]))
            for x, y in zip(of_ranks, right_here, strict=True):
                assert_gradients(x.cpu(), y, torch.float32, scale=40.0)


def likeliest() -> None:
    """entropy_top_p: all ranks name the same tokens, wherever they lie."""
    generator = torch.Generator().manual_seed(3)
    h, w = (torch.randint(-3, 4, (n, 8), generator=generator).float() for n in (N, V))
    t = cases.targets(2, N, V)
    right = ll.linear_token_stats(h, w, t, entropy_top_p=0.9).entropy
    for ends in layouts():
        given = there(DEVICE, part(ends, {}))
        head = [x.to(DEVICE.name) for x in (h, w[mine(ends)], t)]
        ours = ll.linear_token_stats(*head, entropy_top_p=0.9, backend=DEVICE.backend, **given)
        compare([ours.entropy.cpu()], [right], torch.float32)


def errors() -> None:
    """A target that no rank has in its set."""
    ends = next(iter(layouts()))
    h, w, t = torch.zeros(2, 3), torch.zeros(V, 3), torch.tensor([5, 7])
    mask = ll.SamplingMask.from_lists([[5, V - 1], [3, V - 2]])
    head = [x.to(DEVICE.name) for x in (h, w[mine(ends)], t)]

    def call() -> Any:
        return ll.linear_token_stats(
            *head, sampling_mask=mask, backend=DEVICE.backend, **part(ends, {})
        )

    assert "row 1: its target is outside its sampling_mask" in refusal(ValueError, call)


if __name__ == "__main__":
    run(masks, likeliest, errors)
