"""linear_sample by the kernels of a device on two ranks: the token that one rank of the CPU draws.
See shards.py; the device is named behind its arguments."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

import logitless as ll
from tests.support.device.devices import Device
from tests.support.device.draws import drawing_there
from tests.support.workers.vocab.shards import (
    V,
    compare,
    layouts,
    mine,
    part,
    run,
    same_on_all_ranks,
)

DEVICE = Device(*sys.argv[4:6])
N = 3


def draws() -> None:
    """Of products that are exact, whatever their shape; with a bias, and from the top."""
    generator = torch.Generator().manual_seed(3)
    h, w = (torch.randint(-3, 4, (size, 8), generator=generator).float() for size in (N, V))
    bias = torch.randint(-2, 3, (V,), generator=generator).float()
    key: dict[str, Any] = {"seed": 5, "step": 2}
    ids = torch.arange(N) * 3
    ways: list[dict[str, Any]] = [{"bias": bias}, {"bias": bias, "top_k": 40, "top_p": 0.9}]
    for options in ways:
        own = ll.linear_sample(h, w, row_ids=ids, **key, **options)
        for ends in layouts() if "top_k" not in options else list(layouts())[1:3]:
            given = part(ends, options)
            given = {k: x.to(DEVICE.name) if isinstance(x, Tensor) else x for k, x in given.items()}
            there = [x.to(DEVICE.name) for x in (h, w[mine(ends)], ids)]
            with drawing_there(DEVICE):
                found = ll.linear_sample(*there[:2], row_ids=there[2], **key, **given)
            same_on_all_ranks(*found, found.kept_logp)
            assert found.token.tolist() == own.token.tolist(), (options, ends)
            assert found.sampling_mask.lists() == own.sampling_mask.lists()
            compare([found.logp.cpu(), found.entropy.cpu()], [own.logp, own.entropy], h.dtype)


if __name__ == "__main__":
    run(draws)
