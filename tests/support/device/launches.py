"""What a call launches on a device, counted while its tensors are on the CPU.

Torch's ops are one launch each, but for views, what allocates alone, and what has no element. The
kernels of the compiled core are those that the emulator runs: it writes a line for each. Triton's
are those that its interpreter runs.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from logitless.backends.token_kernels.cuda import CudaTokens

# Of which no kernel starts: memory alone, and numbers that stay on the host.
FREE = ("empty", "empty_like", "new_empty", "empty_strided", "scalar_tensor", "lift_fresh")
# Torch sorts by a digit of eight bits after the other, with an order of its own beside.
SEVERAL = {"sort": 16, "argsort": 16}


class Launches(TorchDispatchMode):
    """Names of what was launched, in `seen`, and the bytes that it reads and writes in `moved`."""

    def __init__(self, log: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log, self.seen, self.moved = log, Counter[str](), 0
        self.depth, self.patch = 0, pytest.MonkeyPatch()

    def __enter__(self) -> Launches:
        if not self.depth:
            self.log.write_text("")
            os.environ["LOGITLESS_SIMT_LOG"] = str(self.log)
            run: Callable[..., None] = CudaTokens.run

            def counted(kernels: CudaTokens, name: str, *given: Any, **named: Any) -> None:
                self.moved += _bytes((given, named))
                run(kernels, name, *given, **named)

            self.patch.setattr(CudaTokens, "run", counted)
            if os.environ.get("TRITON_INTERPRET") == "1":
                self.count_interpreted()
        self.depth += 1
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self.depth -= 1
        if not self.depth:
            self.patch.undo()
            del os.environ["LOGITLESS_SIMT_LOG"]
            self.seen.update(self.log.read_text().split())

    def count_interpreted(self) -> None:
        """A kernel as one launch, whatever the interpreter asks of torch."""
        from triton.runtime.interpreter import GridExecutor

        run = GridExecutor.__call__

        def counted(kernel: Any, *given: Any, **named: Any) -> None:
            self.seen[kernel.fn.__name__] += 1
            self.moved += _bytes((given, named))
            with _disable_current_modes():
                run(kernel, *given, **named)

        self.patch.setattr(GridExecutor, "__call__", counted)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func.namespace == "logitless":
            with self:
                return func.redispatch(
                    torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **named
                )
        found = func(*args, **named)
        name = func.overloadpacket.__name__
        if name not in FREE and not _is_view(func) and _bytes(found):
            self.seen[name] += SEVERAL.get(name, 1)
            self.moved += _bytes((args, named)) + _bytes(found)
        return found


def _is_view(func: Any) -> bool:
    aliases = [x.alias_info for x in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _bytes(x: Any) -> int:
    if isinstance(x, Tensor):
        # what is expanded is one element in memory
        shape = [n for n, stride in zip(x.shape, x.stride(), strict=True) if stride or not n]
        return math.prod(shape) * x.element_size()
    if isinstance(x, dict):
        return sum(map(_bytes, x.values()))
    return sum(map(_bytes, x)) if isinstance(x, (tuple, list)) else 0
