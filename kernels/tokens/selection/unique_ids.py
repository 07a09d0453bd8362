"""Whether each id is one token's own, by a table of ids."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from logitless.kernels.launch import UNFUSED, device_of
from logitless.kernels.tokens.selection.keys import check, unsigned
from logitless.kernels.tokens.shared import flag_tokens, token_of, truths_of

# Slots of the table for each token: at most half of them are taken.
SLOTS = 2
# A program goes on while any of its tokens looks for a slot.
TOKENS = 256
NUM_WARPS = 4


@triton.jit
def _slot_of(ids, slots):
    # SplitMix64's last step: ids that follow each other, or lie a power of two apart, spread.
    z = unsigned(ids)
    z = (z ^ (z >> 30)) * tl.full((), 0xBF58476D1CE4E5B9, tl.uint64)
    z = (z ^ (z >> 27)) * tl.full((), 0x94D049BB133111EB, tl.uint64)
    z = (z ^ (z >> 31)) >> 32
    return tl.cast((z * tl.cast(slots, tl.uint64)) >> 32, tl.int64)


@triton.jit(do_not_specialize=["n", "slots"])
def unique_ids_kernel(
    ids_ptr,  # [n] int64
    mask_ptr,  # [n] bool
    table_ptr,  # [slots] int32, all 0
    flag_ptr,  # [1] int64, in and out
    n,
    slots: tl.int64,
    TOKENS: tl.constexpr,
):
    # A slot of the table belongs to one id, and has 1 and the first token of that id that has come.
    # Of two tokens that meet there the later one is flagged: whatever their order, the second of an
    # id is among those that are.
    i, inside = token_of(n, TOKENS)
    ids = tl.load(ids_ptr + i, mask=inside, other=0)
    looking = truths_of(mask_ptr, i, inside)
    flag_tokens(flag_ptr, i, looking & (ids < 0))
    looking &= ids >= 0
    own = (i + 1).to(tl.int32)
    slot = _slot_of(ids, slots)
    # a table that held anything before ends the search, and reaches no other memory
    step = tl.full((), 0, tl.int64)
    while (tl.max(looking.to(tl.int32), 0) > 0) & (step < slots):
        # whoever looks no more claims what no slot holds
        first = tl.atomic_cas(table_ptr + slot, tl.where(looking, 0, -1), own, sem="relaxed")
        first = tl.cast(first, tl.int64)
        taken = looking & (first > 0) & (first <= n)
        meets = taken & (tl.load(ids_ptr + (first - 1), mask=taken, other=-1) == ids)
        before = tl.atomic_min(table_ptr + slot, own, mask=meets, sem="relaxed")
        later = tl.cast(tl.maximum(before, own), tl.int64) - 1
        flag_tokens(flag_ptr, later, meets)
        looking &= (first != 0) & (meets == 0)
        slot = tl.where(slot + 1 < slots, slot + 1, 0)
        step += 1


def unique_ids(ids: Tensor, mask: Tensor, flag: Tensor) -> None:
    """Flagged is the second token of an id, and one whose id is negative."""
    check(ids, torch.int64, ids=ids)
    check(ids, torch.bool, mask=mask)
    n = len(ids)
    if n == 0:
        return
    table = ids.new_zeros((SLOTS * n,), dtype=torch.int32)
    with device_of(ids):
        unique_ids_kernel[(triton.cdiv(n, TOKENS),)](
            ids, mask, table, flag, n, len(table), TOKENS=TOKENS, num_warps=NUM_WARPS, **UNFUSED
        )
