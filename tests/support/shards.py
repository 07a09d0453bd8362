"""What the workers of test_vocab_parallel.py share: one of two or three gloo ranks with a part of a
vocabulary, and how its results are compared with those of one rank that has all of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import logitless as ll
from tests.support.tolerances import assert_bitwise_equal, assert_values

RANK, WORLD = int(sys.argv[1]), int(sys.argv[2])
N, H, V = 21, 24, 5003
# Who has which columns: as equal as can be; of all sizes, one rank with less than a block; in an
# order that is not that of ranks; one rank with nothing.
LAYOUTS = {
    2: {
        "even": [(0, 2502), (2502, V)],
        "uneven": [(0, 100), (100, V)],
        "reversed": [(1777, V), (0, 1777)],
        "empty": [(0, V), (V, V)],
    },
    3: {
        "even": [(0, 1668), (1668, 3336), (3336, V)],
        "uneven": [(0, 700), (700, 1900), (1900, V)],
        "reversed": [(4096, V), (2048, 4096), (0, 2048)],
        "empty": [(0, 3000), (9, 9), (3000, V)],
    },
}[WORLD]
SLACK = {torch.float32: 10.0, torch.float64: 1e3, torch.bfloat16: 1e4, torch.float16: 1e3}


def group() -> dict[str, Any]:
    return {"vocab_group": dist.group.WORLD}


def mine(ends: list[tuple[int, int]]) -> slice:
    return slice(*ends[RANK])


def part(ends: list[tuple[int, int]], options: dict[str, Any]) -> dict[str, Any]:
    """The options of this rank: its part of the bias, and where it starts."""
    own = dict(options, **group(), vocab_start=ends[RANK][0])
    if own.get("bias") is not None:
        own["bias"] = own["bias"].detach()[mine(ends)].clone().requires_grad_()
    return own


def same_on_all_ranks(*tensors: Tensor) -> None:
    for x in tensors:
        x = x.detach().contiguous()
        all_of_them = [torch.empty_like(x) for _ in range(WORLD)]
        dist.all_gather(all_of_them, x)
        for other in all_of_them:
            assert_bitwise_equal(other, x)


def values(stats: ll.TokenStats) -> list[Tensor]:
    return [stats.logp, stats.entropy, stats.lse, *stats.extras.values()]


def compare(ours: list[Tensor], truth: list[Tensor], dtype: torch.dtype) -> None:
    for got, right in zip(ours, truth, strict=True):
        if got.dtype == torch.int64:
            assert torch.equal(got, right)
        else:
            # 16-bit tiles may round once more or less where a product is cut otherwise
            slack = {torch.bfloat16: 5e3, torch.float16: 1e3}.get(dtype, 1.0)
            assert_values(got / slack, right.detach() / slack, dtype)


def gradients_of(stats: ll.TokenStats, g: Any, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    loss = (stats.logp * g[0] + stats.entropy * g[1] + stats.lse * g[2]).sum()
    return torch.autograd.grad(loss, leaves)


def layouts() -> Iterator[list[tuple[int, int]]]:
    yield from LAYOUTS.values()


def refusal(kind: type[Exception], call: Callable[[], Any]) -> str:
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError("nothing was raised")


def run(*checks: Callable[[], None]) -> None:
    """All of them on this rank, one after the other."""
    torch.set_num_threads(1)
    store = Path(sys.argv[3])
    dist.init_process_group("gloo", init_method=store.as_uri(), rank=RANK, world_size=WORLD)
    for check in checks:
        check()
        # A rank that is ahead must not meet the next check's calls while others are in this one.
        dist.barrier()
    dist.destroy_process_group()
    # gloo's threads may outlive the group, and at a normal exit abort the process once in a while
    sys.stdout.flush()
    os._exit(0)


def leaves(
    ends: list[tuple[int, int]], h: Tensor, w: Tensor, options: dict[str, Any]
) -> tuple[list[Tensor], list[Tensor], dict[str, Any]]:
    """What is differentiated in one rank's call and in ours, and the options of ours."""
    whole, local = [h, w], part(ends, options)
    own = [h.detach().clone().requires_grad_(), w.detach()[mine(ends)].clone().requires_grad_()]
    if "bias" in options:
        whole.append(options["bias"].requires_grad_())
        own.append(local["bias"])
    return whole, own, local
