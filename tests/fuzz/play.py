"""Runs cases and says which one was wrong."""

from __future__ import annotations

import inspect
import traceback
from typing import Any

import numpy as np

from tests.fuzz import cuda_tokens, divergence, rows, sets, sparse, tokens
from tests.fuzz.case import Case, call
from tests.fuzz.memory import Exporter, Memory
from tests.fuzz.spoil import spoil

MAKERS = {
    **cuda_tokens.MAKERS, **divergence.MAKERS, **rows.MAKERS, **sets.MAKERS, **sparse.MAKERS,
    **tokens.MAKERS,
}  # fmt: skip
ALLOWED = (ValueError, TypeError, OverflowError, BufferError, RuntimeError, MemoryError)
# How many arguments of a case are spoilt: a fifth of the calls stay valid.
SPOILT = (0, 1, 1, 2, 3)


def bindings(core: Any) -> set[str]:
    """Everything in the modules that can be called: a new function is wanted here, too."""
    found = set()
    for module, members in vars(core).items():
        if not inspect.ismodule(members):
            assert module.startswith("__"), f"{module} is in no submodule"
            continue
        for name, value in vars(members).items():
            if inspect.isclass(value):
                found.add(f"{module}.{name}.__init__")
                found |= {
                    f"{module}.{name}.{method}"
                    for method, member in vars(value).items()
                    if inspect.isroutine(member) and not method.startswith("_")
                }
            elif inspect.isroutine(value):
                found.add(f"{module}.{name}")
    return found


def without_cuda(core: Any) -> set[str]:
    """What refuses arrays on the CPU, or to be made: everything of CUDA but its emulation."""
    if core.runtime.build_info()["cuda"]["emulated"]:
        return set()
    return {name for name in MAKERS if "cuda" in name.lower() and "workspace" not in name}


def place(case: Case, memory: Memory) -> None:
    for key, value in case.arguments.items():
        if isinstance(value, np.ndarray):
            case.arguments[key] = memory.place(value)


def given(case: Case) -> dict[str, Any]:
    """The arguments as the call gets them."""
    arguments = dict(case.arguments)
    for key in case.bfloat:
        value = arguments[key]
        if isinstance(value, np.ndarray) and value.dtype == np.uint16:
            arguments[key] = Exporter(value, bfloat=True)
    return arguments


def play(core: Any, case: Case, memory: Memory) -> str:
    """What became of it: "returned", or the name of an exception that is allowed."""
    arrays = {
        key: value.array if isinstance(value, Exporter) else value
        for key, value in case.arguments.items()
        if isinstance(value, (Exporter, np.ndarray))
    }
    outputs = [array for key, array in arrays.items() if key in case.written]
    before = [
        (block, block.copy())
        for block, _, _ in memory.blocks
        if not any(np.may_share_memory(block, out) for out in outputs)
    ]
    refused = said = ""
    try:
        result = call(core, case, given(case))
        if case.name == "runtime.Memory.__init__":
            np.frombuffer(result, np.uint8)[...] = 1
    except ALLOWED as error:
        refused = type(error).__name__
        said = str(error)
    if refused:
        assert case.spoilt or case.name in without_cuda(core), f"a valid call raised: {said}"
        assert said, "an error without a word"
    assert refused or not case.must_raise, "a lie was taken for an array"
    memory.check_guards()
    for block, copy in before:
        assert (block == copy).all(), "the call changed what it only reads"
    if not refused:
        check_outputs(case, arrays)
    return refused or "returned"


def check_outputs(case: Case, arrays: dict[str, Any]) -> None:
    """What a call that returned wrote may be written, and is nobody else's memory."""
    for key in case.written:
        out = arrays.get(key)
        if out is None:
            continue
        assert out.flags.writeable, f"{key} is read-only and was written"
        for other, array in arrays.items():
            if (
                other == key
                or case.may_share == (key, other)
                or not np.may_share_memory(out, array)
            ):
                continue
            raise AssertionError(f"{key} was written and shares memory with {other}")


def run(core: Any, seed: int, cases: int, only: str = "") -> dict[str, int]:
    """Counts of what became of the cases; at the first bad one, an error that says how to repeat
    it."""
    names = [name for name in sorted(MAKERS) if only in name]
    counts: dict[str, int] = {}
    for number in range(cases):
        name = names[number % len(names)]
        rng = np.random.default_rng((seed, number))
        memory = Memory(guarded=bool(rng.integers(2)))
        case = None
        try:
            case = MAKERS[name](core, rng)
            place(case, memory)
            # where nothing can be called, only the refusal is tried
            for _ in range(SPOILT[rng.integers(len(SPOILT))] if case.arguments else 0):
                spoil(case, rng, memory)
            became = play(core, case, memory)
        except Exception as error:
            what = case.spoilt if case is not None else "in the making"
            place_of = f"{name}, seed {seed}, case {number}, {what}"
            raise SystemExit(f"{traceback.format_exc()}\nfuzz: {place_of}: {error}") from error
        counts[became] = counts.get(became, 0) + 1
    return counts
