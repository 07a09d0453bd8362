"""How many threads the CPU's kernels use: one rule for rows, losses and selection."""

from __future__ import annotations

import os
import sys

from logitless import _core
from logitless.inputs.checks import is_tensor


def thread_count(x: object) -> int:
    """How many threads work on an array: torch.get_num_threads() on a tensor; on a NumPy array
    LOGITLESS_NUM_THREADS where it is set, else torch.get_num_threads() where torch is loaded, else
    as many as there are CPUs that this process may run on. Results do not depend on it."""
    torch = sys.modules.get("torch")
    if torch is None or (not is_tensor(x) and os.environ.get("LOGITLESS_NUM_THREADS")):
        return _core.runtime.default_threads()
    return int(torch.get_num_threads())
