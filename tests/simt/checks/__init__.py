"""Checks of emulated CUDA kernels against the oracle: python -m tests.simt.checks FOLDER NAME...

FOLDER holds the module `simt_rows`. Runs without torch, in a Python of its own, since the address
sanitizer must be there before anything else. The order of threads is LOGITLESS_SIMT_SEED's.
"""

from __future__ import annotations

from tests.simt.checks import pairs, rows, sampling, sets, tokens, topk

CHECKS = {
    name: check
    for room in (rows, tokens, topk, pairs, sampling, sets)
    for name, check in room.CHECKS.items()
}
