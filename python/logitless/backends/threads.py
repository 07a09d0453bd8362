"""How many threads the CPU's kernels use: one rule for rows, losses and selection."""

from __future__ import annotations

import sys

from logitless import _core
from logitless.inputs.checks import is_tensor


def thread_count(x: object) -> int:
    """How many threads work on an array: torch.get_num_threads() on a tensor; on a NumPy array
    LOGITLESS_NUM_THREADS where it is set, else torch.get_num_threads() where torch is loaded, else
    as many as there are CPUs that this process may run on. Results do not depend on it."""
    torch = sys.modules.get("torch")
    threads = 0 if torch is None else int(torch.get_num_threads())
    return threads if is_tensor(x) else _core.runtime.default_threads(threads)
