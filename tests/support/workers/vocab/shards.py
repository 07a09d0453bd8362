"""What the workers of test_vocab_parallel.py share: one of two or three gloo ranks with a part of a
vocabulary, and how its results are compared with those of one rank that has all of it."""

from __future__ import annotations

import functools
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

# One process has many layouts here, whose ranges coincide on some ranks: every call has to agree.
os.environ.setdefault("LOGITLESS_CHECK", "1")
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


# The dimension of the vocabulary; what is not here, as hidden, all ranks have as a whole. B is an
# adapter's.
COLUMNS = {"logits": -1, "weight": 0, "bias": 0, "B": 0}


def columns(name: str, x: Tensor, ends: list[tuple[int, int]]) -> Tensor:
    start, stop = ends[RANK]
    return x.narrow(COLUMNS[name], start, stop - start) if name in COLUMNS else x


def compare_with_one_rank(
    call: Callable[..., Any],
    given: dict[str, Tensor],
    ends: list[tuple[int, int]],
    options: dict[str, Any],
    *,
    outputs: Callable[[Any], list[Tensor]],
    loss: Callable[[Any], Tensor],
    near: Callable[[list[Tensor], list[Tensor]], None],
    near_gradient: Callable[[Tensor, Tensor, Tensor], None],
) -> tuple[Any, Any]:
    """The results of `call` on one rank alone and on ours. It takes the options and what is given;
    the gradients of the latter, and of a bias, are compared. `near_gradient` gets ours, the columns
    of one rank's that are ours, and all of it."""
    given = given | {k: x for k, x in options.items() if k in COLUMNS}
    call = functools.partial(call, **{k: x for k, x in options.items() if k not in COLUMNS})
    whole = {k: x.detach().clone().requires_grad_() for k, x in given.items()}
    own = {k: columns(k, x.detach(), ends).clone().requires_grad_() for k, x in given.items()}
    expected, ours = call(**whole), call(**own, **group(), vocab_start=ends[RANK][0])
    same_on_all_ranks(*outputs(ours))
    near(outputs(ours), outputs(expected))
    right = torch.autograd.grad(loss(expected), list(whole.values()))
    got = torch.autograd.grad(loss(ours), list(own.values()))
    for name, gradient, truth in zip(given, got, right, strict=True):
        if name not in COLUMNS:
            same_on_all_ranks(gradient)
            assert truth.abs().max() > 0
        near_gradient(gradient, columns(name, truth, ends), truth)
    return expected, ours


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


def weighted(stats: ll.TokenStats, g: Any) -> Tensor:
    return (stats.logp * g[0] + stats.entropy * g[1] + stats.lse * g[2]).sum()


def gradients_of(stats: ll.TokenStats, g: Any, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(weighted(stats, g), leaves)


def loss_outputs(out: ll.LinearPolicyLossOutput) -> list[Tensor]:
    return [out.loss.view(1), out.logp, out.entropy, *out.extras.values(), *out.metrics.values()]


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
