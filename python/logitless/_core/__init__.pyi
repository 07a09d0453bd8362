"""Types of the compiled core. Private: the functions of the logitless package wrap it.

An Array is anything with __dlpack__: a torch tensor or a NumPy array; on the CPU, but for those of
CudaRows. Outputs are given by the caller and written in place. tests/test_stubs.py keeps every
class and function in step with the code.
"""

from __future__ import annotations

from typing import Any, Protocol

from logitless._core import divergence as divergence
from logitless._core import rows as rows
from logitless._core import runtime as runtime
from logitless._core import sampling as sampling
from logitless._core import sets as sets
from logitless._core import tokens as tokens
from logitless._core import topk as topk

class Array(Protocol):
    def __dlpack__(self) -> Any: ...
