"""Seeded calls of every function of the compiled core, mostly valid, some of them spoilt.

    python -m tests.fuzz --seed 1 --cases 1000

A call returns or raises one of a few exceptions; it never ends the process, writes nothing but its
outputs, and leaves its inputs as they were. `memory` places arrays, `spoil` makes arguments wrong,
`rows`, `tokens`, `sparse`, `sets` and `divergence` know what each function takes, and `play` runs
the cases.
"""

from __future__ import annotations
