"""Gathered ids in rising order, by runs."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.bitonic import in_order
from logitless.kernels.launch import UNFUSED, device_of
from logitless.kernels.tokens.selection.gather_ids import gathered_of
from logitless.kernels.tokens.selection.keys import check
from logitless.kernels.tokens.shared import CLEAR

RUN = 2048
NUM_WARPS = 8


@triton.jit(do_not_specialize=["n"])
def sort_runs_kernel(
    room_ptr,  # [n] int64, in and out
    found_ptr,  # [1] int64
    n: tl.int64,
    RUN: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * RUN
    found = gathered_of(found_ptr, n)
    if start < found:
        o = tl.arange(0, RUN)
        inside = start + o < found
        ids = tl.load(room_ptr + start + o, mask=inside, other=CLEAR)
        held = tl.minimum(found - start, RUN).to(tl.int32)
        tl.store(room_ptr + start + o, in_order(ids, o, held, LARGEST=False), mask=inside)


def sort_runs(room: Tensor, found: Tensor) -> None:
    """In `room` [n], of which the first `found` [1] are ids."""
    check(room, torch.int64, room=room)
    n = len(room)
    if n == 0:
        return
    with device_of(room):
        sort_runs_kernel[(triton.cdiv(n, RUN),)](
            room, found, n, RUN=RUN, num_warps=NUM_WARPS, **UNFUSED
        )
