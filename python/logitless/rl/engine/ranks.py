"""The processes that train one policy together, by torch.distributed: torchrun starts them, and
without it there is one.

Every rank calls each function that is collective here, in the same order. No rank waits for one
that has failed: what a rank does between two of them is told in the second one, and who dies closes
its connections.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class OtherRank(RuntimeError):
    """Another rank has failed. It says why, unless it is `lost`: gone without a word."""

    def __init__(self, message: str, *, lost: bool = False) -> None:
        super().__init__(message)
        self.lost = lost


class Gone(BaseException):
    """The end of this process: others wait for it in the midst of a step, and miss it by that."""


@contextmanager
def joined() -> Iterator[None]:
    """A process that torchrun has started is one of several ranks in here."""
    started = dist.is_available() and dist.is_torchelastic_launched()
    if not started or int(os.environ["WORLD_SIZE"]) == 1 or dist.is_initialized():
        yield
        return
    on_gpus = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo")
    try:
        yield
    except OtherRank as error:
        if not error.lost:
            # torchrun ends all once one has gone: that one goes first, with what it has to say
            with suppress(OtherRank):
                _gathered(None)
        raise
    # after an error the end of the process closes the connections
    dist.destroy_process_group()


def alone() -> bool:
    return not (dist.is_available() and dist.is_initialized())


def count() -> int:
    return 1 if alone() else dist.get_world_size()


def number() -> int:
    return 0 if alone() else dist.get_rank()


def is_first() -> bool:
    """Whether this rank writes and prints."""
    return number() == 0


def share(things: int) -> slice:
    """Those of this rank: neighbours, and as many as any other's, or one more."""
    start, stop = (things * rank // count() for rank in (number(), number() + 1))
    return slice(start, stop)


def check_prompts(key: str, prompts: int) -> None:
    """ValueError where a recipe's key gives a rank nothing to do."""
    if prompts < count():
        raise ValueError(
            f"recipe key '{key}' must be at least {count()}, a prompt for each rank, got {prompts}"
        )


def each(work: Callable[[], T]) -> list[T]:
    """What `work` gives on every rank, in their order. Collective.

    An error on one rank is one on all: on the first that has one its own, on others OtherRank.
    `work` may be collective itself.
    """
    if alone():
        return [work()]
    value, error = None, None
    try:
        value = work()
    except Exception as raised:
        error = raised
    is_own = not isinstance(error, OtherRank)
    why = None if error is None else f"{type(error).__name__}: {error}"
    told = _gathered((value, why, is_own))
    failed = [rank for rank, (_, why, _) in enumerate(told) if why is not None]
    if not failed:
        return [value for value, _, _ in told]
    if error is not None and not is_own:
        raise error
    first = next((rank for rank in failed if told[rank][2]), failed[0])
    if error is not None and first == number():
        raise error
    raise OtherRank(f"rank {first}: {told[first][1]}") from error


def together(work: Callable[[], T]) -> T:
    """This rank's own `work()`, once no other's has failed. Collective."""
    found: list[T] = []
    each(lambda: found.append(work()))
    return found[0]


def first(work: Callable[[], T]) -> T:
    """What the first rank's `work()` gives; the others' is not done. Collective."""
    found: Any = each(lambda: work() if is_first() else None)[0]
    return found  # type: ignore[no-any-return]


def same(work: Callable[[], T]) -> T:
    """What `work()` gives on all ranks alike; ValueError where it does not. Collective."""
    found = each(work)
    if any(value != found[0] for value in found):
        raise ValueError(
            f"ranks must find the same in the run's folder, which all of them read; got {found}"
        )
    return found[0]


def largest(value: int) -> int:
    """Of all ranks. Collective."""
    return max(each(lambda: value))


@torch.no_grad()
def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Those of all ranks add up, in place; where none has one, there is none. Collective."""
    if alone():
        return
    has = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device="cpu")
    add_up([has])
    wanted = [p for p, ranks in zip(parameters, has.tolist(), strict=True) if ranks]
    for p in wanted:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad.contiguous()
    add_up([p.grad for p in wanted if p.grad is not None])


def add_up(tensors: Sequence[Tensor]) -> None:
    """Sums over ranks, in place, all under way at once. Collective."""
    if not alone():
        with _listening():
            for sent in [dist.all_reduce(x, async_op=True) for x in tensors]:
                sent.wait()


@torch.no_grad()
def copy_first(tensors: Sequence[Tensor]) -> None:
    """The first rank's numbers on all ranks. Collective."""
    if not alone():
        with _listening():
            for sent in [dist.broadcast(x, 0, async_op=True) for x in tensors]:
                sent.wait()


@contextmanager
def in_step() -> Iterator[None]:
    """What sends and receives in here is another's. An error ends the process, since the other
    ranks wait for that, and cannot be told."""
    try:
        yield
    except Exception as error:
        raise Gone(f"rank {number()} ends: {type(error).__name__}: {error}") from error


def _gathered(value: Any) -> list[Any]:
    found = [None] * count()
    with _listening():
        dist.all_gather_object(found, value)
    return found


@contextmanager
def _listening() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        why = str(error).strip().splitlines()[0]
        raise OtherRank(f"rank {number()} has lost another rank: {why}", lost=True) from error
