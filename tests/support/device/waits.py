"""Where the host waits for a device: modes that see it while tensors are on the CPU too."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from logitless.backends import registry
from logitless.backends.row_kernels import errors
from logitless.ops.losses import op as loss_op
from tests.support.device.devices import Device, tokens_there
from tests.support.losses.tensor_tokens import TensorTokens
from tests.support.paths import ROOT

# A value of a tensor, or how many elements it has, becomes the host's.
READS = (
    "_local_scalar_dense", "item", "nonzero", "masked_select", "is_nonzero", "equal", "unique",
)  # fmt: skip
# Numbers of the host's own become a tensor: by torch.tensor, and by an index that is a list.
SENDS = ("lift_fresh",)


class Waits(TorchDispatchMode):
    """Counts them, by name, in `seen`: what the library does in and around its own ops."""

    WAITS: tuple[str, ...] = READS

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []
        self.depth, self.patch = 0, pytest.MonkeyPatch()

    def __enter__(self) -> Waits:
        if not self.depth and "_local_scalar_dense" in self.WAITS:
            # which of a tensor on the CPU are no op of torch's
            for name in ("tolist", "cpu"):
                self.patch.setattr(Tensor, name, self.asked(name, getattr(Tensor, name)))
        self.depth += 1
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self.depth -= 1
        if not self.depth:
            self.patch.undo()

    def asked(self, name: str, method: Any) -> Any:
        def call(tensor: Tensor, *args: Any, **options: Any) -> Any:
            if sys._getframe(1).f_globals["__name__"].startswith("logitless."):
                self.found(name)
            return method(tensor, *args, **options)

        return call

    def found(self, what: str) -> None:
        self.seen.append(what)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.WAITS or ("nonzero" in self.WAITS and _by_mask(name, args)):
            self.found(str(func))
        if func.namespace == "logitless":
            # what its kernel does is looked at as well
            key = torch._C.DispatchKey.CUDA if _on_gpu(args) else torch._C.DispatchKey.CPU
            with self:
                return func.redispatch(torch._C.DispatchKeySet(key), *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class NothingIsRead(Waits):
    """Raises where the host would wait for a value of a tensor on a device."""

    def found(self, what: str) -> None:
        raise AssertionError(f"the host waits for {what}")


class NothingIsSent(NothingIsRead):
    """Nor where it would send one: to make a tensor of its own numbers there."""

    WAITS = (*READS, *SENDS)


class NoNumberIsSent(NothingIsRead):
    """Where it sends one, whatever it reads."""

    WAITS = SENDS


def as_on_device(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins on the CPU make losses as a device does, and look at no number that is here."""
    if device.name == "cpu":
        if registry.get(device.backend).tokens is None:
            tokens_there(TensorTokens(), monkeypatch)
        # of a tensor that is on the CPU the gradient of the loss is looked at
        monkeypatch.setattr(loss_op, "graph_is_kept", lambda: True)
    # what is said of a captured graph goes with it
    monkeypatch.setattr(errors, "_watches", {})


def nothing_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a first call: what calls before have flagged, which is a look at a number of the
    host's, is not looked at."""
    monkeypatch.setattr(errors, "capturing", lambda device: True)


def waits_of(
    run: Callable[[], Tensor], leaves: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], list[str]]:
    """Of a forward and of its backward, by name, once both have run."""
    torch.autograd.grad(run(), leaves)
    with monkeypatch.context() as patch:
        nothing_is_flagged(patch)
        with Waits() as there:
            found = run()
        with Waits() as back:
            torch.autograd.grad(found, leaves)
    return there.seen, back.seen


def promised(page: str) -> dict[str, tuple[int, int]]:
    """Call -> waits of its forward and of its backward, in the table of a page of the docs."""
    rows = re.findall(r"^\| (`.*) \| (\d+) \| (\d+) \|$", (ROOT / page).read_text(), re.M)
    return {name: (int(there), int(back)) for name, there, back in rows}


def _by_mask(name: str, args: Any) -> bool:
    """Whether an index is a mask, whose number is waited for."""
    if not name.startswith("index"):
        return False
    indices = args[1] if len(args) > 1 and isinstance(args[1], (tuple, list)) else ()
    return any(i is not None and i.dtype == torch.bool for i in indices)


def _on_gpu(args: Any) -> bool:
    return any(x.is_cuda for x in args if isinstance(x, Tensor))
