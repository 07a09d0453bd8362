"""Bad rows on a device: a kernel flags them, and the host finds out without waiting.

A kernel cannot raise, and waiting for it would stall the device. So every call lowers one flag per
device to the smallest (row, kind) that was bad (and writes NaN for such rows), and queues a copy of
the flag to pinned memory. The next call or backward that finds the copy done and the flag set
raises RuntimeError naming the call that failed. A call of more active rows than it has room for
does the same. LOGITLESS_CHECK=1 waits in every call instead, and raises the ValueError that the CPU
raises. While a CUDA graph is captured only the flag is written: no copy, no query, no wait; what a
replay flags is found by the next call outside of graphs.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from logitless.backends.row_kernels.device import current

# The flag while no row was bad. A bad row writes row * 8 + kind, a call with too many active rows a
# negative number, and the smallest one stays.
CLEAR = 2**63 - 1
# Above the number of rows of any call.
_ROWS = 2**31
# Kinds from 1 on are the kernels' own, 0 is written here: a bad temperature makes NaN of its row,
# and is to be named before that.
KINDS = (
    "its temperature must be finite and > 0, in float32's range with logit_scale and softcap",
    "its logits hold a +inf",
    "its logits hold a NaN",
    "it has no finite logit",
    "its target is outside {allowed}",
    "its logits times logit_scale / temperature overflow float32",
    "its teacher's logits hold a +inf, a NaN, or no finite one, or its teacher_noise is not finite "
    "and >= 0",
    "a value of its token is not finite, or its token id is negative or that of another, or its "
    "sequence is not whole, or its loss or a coefficient is not finite in the dtype of logp",
)
# Of a token in place of a row.
BAD_TOKEN = 7
# Copies under way at a time. Where all are, a call queues none, and a later one brings its flag.
_SLOTS = 32


class _Call(NamedTuple):
    """A call whose copy of the flag is under way."""

    op: str
    allowed: str
    slot: int
    # Who else may have lowered the flag and brought no copy of it.
    others: str


class _Watch:
    """The flag of one device, and the copies of it that are under way."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.on_gpu = device, device.type == "cuda"
        self.flag = torch.full((1,), CLEAR, dtype=torch.int64, device=device)
        self.copies = torch.full((_SLOTS,), CLEAR, dtype=torch.int64, pin_memory=self.on_gpu)
        self.events = [torch.cuda.Event() for _ in range(_SLOTS if self.on_gpu else 0)]
        self.calls: deque[_Call] = deque()
        self.free = list(range(_SLOTS))
        self.captured = self.missed = False
        # Backward runs in a thread of its own.
        self.lock = threading.Lock()
        # Another stream may be the next to write the flag.
        self.wait()

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def after(self, op: str, allowed: str) -> None:
        """A call has queued its finish."""
        if capturing(self.device):
            self.captured = True
        elif checks_at_once():
            # int() waits for the kernels.
            value = int(self.flag)
            if value != CLEAR:
                self.clear()
                raise ValueError(f"{op}: {describe(value, allowed)}")
        else:
            with self.lock:
                self.queue_copy(op, allowed)

    def queue_copy(self, op: str, allowed: str) -> None:
        if not self.free:
            self.missed = True
            return
        slot = self.free.pop()
        self.copies[slot : slot + 1].copy_(self.flag, non_blocking=True)
        if self.on_gpu:
            self.events[slot].record(torch.cuda.current_stream(self.device))
        others = (("a call before it", self.missed), ("a replayed CUDA graph", self.captured))
        named = " or ".join(who for who, there in others if there)
        self.calls.append(_Call(op, allowed, slot, f" (or {named})" if named else ""))
        self.missed = False

    def raise_found(self) -> None:
        with self.lock:
            while self.calls and (not self.on_gpu or self.events[self.calls[0].slot].query()):
                call = self.calls.popleft()
                self.free.append(call.slot)
                # of the host: it waits for nothing
                value = int(self.copies.numpy()[call.slot])
                if value != CLEAR:
                    self.clear()
                    raise RuntimeError(_found_later(call, value))

    def clear(self) -> None:
        """Start afresh. An error may take its time: nothing is under way afterwards."""
        self.wait()
        self.flag.fill_(CLEAR)
        self.calls.clear()
        self.missed = False
        self.free = list(range(_SLOTS))
        self.wait()


_watches: dict[torch.device, _Watch] = {}


@contextmanager
def watched(op: str, device: torch.device, allowed: str = "") -> Iterator[Tensor]:
    """The flag that a call's finish is to lower; afterwards, what `after` says. `allowed`: what
    targets are outside of where they are bad."""
    watch = _watch(op, device)
    yield watch.flag
    watch.after(op, allowed)


def flag_of(op: str, device: torch.device) -> Tensor:
    """The same of a kernel in a call whose finish is still to come."""
    return _watch(op, device).flag


def _watch(op: str, device: torch.device) -> _Watch:
    watch = _watches.get(device)
    if watch is None:
        if capturing(device):
            raise RuntimeError(
                f"{op}: the first call on {device} must come before a CUDA graph is captured: it "
                "sets up the flag for bad rows, and loads kernels. logitless.warm(device, dtype) "
                "is such a call for all of them"
            )
        watch = _watches.setdefault(device, _Watch(device))
    return watch


def raise_found(device: torch.device) -> None:
    """Raise what an earlier call on this device flagged, if that is known by now."""
    watch = _watches.get(device)
    if watch is not None and not capturing(device):
        watch.raise_found()


def unnamed() -> bool:
    """Whether a bad row is flagged on some device and not named yet. Waits for the devices."""
    return any(int(watch.flag) != CLEAR for watch in _watches.values())


def raise_now(device: torch.device) -> None:
    """The same where the host is about to wait for its values anyway."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    raise_found(device)


def flag_temperatures(
    flag: Tensor,  # [1] int64
    row_scale: Tensor,  # [n] float64, NaN where the temperature was bad
    mask: Tensor | None,  # [n] bool
    row_ids: Tensor | None,  # [n] int64
) -> None:
    """Lower the flag to the first active row of NaN scale, on the device."""
    if len(row_scale) == 0:
        return
    bad = row_scale.isnan() if mask is None else row_scale.isnan() & mask
    rows = torch.arange(len(bad), device=bad.device) if row_ids is None else row_ids
    lower(flag, bad, rows, 0)


def lower(flag: Tensor, bad: Tensor, rows: Tensor, kind: Tensor | int) -> None:
    """Lower the flag to the first of `rows` [n] that is `bad`, on the device."""
    if len(rows):
        torch.minimum(flag, torch.where(bad, rows * 8 + kind, CLEAR).amin(), out=flag)


def lower_where_more(flag: Tensor, count: Tensor, capacity: int) -> Tensor:
    """Whether more rows are active than a call has room for, and the flag lowered if so, on the
    device."""
    more = count > capacity
    torch.minimum(flag, torch.where(more, -(count * _ROWS + capacity), CLEAR), out=flag)
    return more


def more_active(count: int, capacity: int) -> str:
    return f"active_capacity must be at least the number of active rows, {count}, got {capacity}"


def describe(value: int, allowed: str) -> str:
    """ "row 17: its logits hold a NaN" of the flag row * 8 + kind."""
    if value < 0:
        return more_active(*divmod(-value, _ROWS))
    return f"row {value // 8}: {KINDS[value % 8].format(allowed=allowed)}"


def _found_later(call: _Call, value: int) -> str:
    return (
        f"{call.op}{call.others}: {describe(value, call.allowed)}. Found after the call had "
        "returned, since kernels on a device are not waited for; LOGITLESS_CHECK=1 raises in the "
        "call itself"
    )


def checks_at_once() -> bool:
    return os.environ.get("LOGITLESS_CHECK", "0") not in ("", "0")


def capturing(device: torch.device) -> bool:
    # fake tensors are on devices that need not be here
    if device.type != "cuda" or not torch.cuda.is_initialized():
        return False
    with current(device):
        return bool(torch.cuda.is_current_stream_capturing())
