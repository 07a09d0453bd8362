"""Checks of emulated CUDA kernels against the oracle: python -m tests.simt.checks FOLDER NAME...

FOLDER holds the module `simt_rows`. Runs without torch, in a Python of its own, since the address
sanitizer must be there before anything else. The order of threads is LOGITLESS_SIMT_SEED's.
"""

from __future__ import annotations

from tests.simt.checks import pairs, rows, sampling, sets, tokens, topk

# The rooms of csrc/cuda whose kernels they run.
_ROOMS = (
    (rows, ("rows",)),
    (tokens, ("tokens",)),
    (topk, ("topk",)),
    (pairs, ("divergence",)),
    (sampling, ("sampling",)),
    (sets, ("topk", "divergence")),
)
CHECKS = {name: check for checks, _ in _ROOMS for name, check in checks.CHECKS.items()}
ROOMS = {name: rooms for checks, rooms in _ROOMS for name in checks.CHECKS}
