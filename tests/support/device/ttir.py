"""What the compiler sees of a Triton kernel: are offsets that grow with N computed in 64 bits?"""

from __future__ import annotations

import re

# `%a, %b = op %c, %d : types`; a value of several results is %a:2, used as %a#1.
LINE = re.compile(r"^\s*(%[\w]+)(?::\d+)? = (.*)$", re.MULTILINE)
VALUE = re.compile(r"%\w+")


def narrow_offsets(ttir: str) -> list[str]:
    """The lines that add to a pointer what depends on the program and was ever 32 bits wide.

    Widening afterwards does not help a product that has already wrapped, so a multiplication or an
    addition of 32 bits anywhere between the program's index and the pointer counts. Division and
    remainder of the index by a row's pieces only make it smaller.
    """
    made_by = dict(LINE.findall(ttir))
    bad = []
    for name, operation in made_by.items():
        if not operation.startswith("tt.addptr"):
            continue
        offset = VALUE.findall(operation)[1]
        # tt.addptr %pointer, %offset : pointer type, offset type
        is_64 = re.search(r"\bi64\b|xi64>", operation.rsplit(",", 1)[1]) is not None
        before = _all_before(offset, made_by)
        if not any("tt.get_program_id" in made_by.get(value, "") for value in before):
            continue
        if not is_64 or any(_can_wrap(made_by.get(value, "")) for value in before):
            bad.append(f"{name} = {operation}")
    return bad


def _all_before(value: str, made_by: dict[str, str]) -> set[str]:
    seen, ahead = set(), [value]
    while ahead:
        value = ahead.pop()
        if value not in seen:
            seen.add(value)
            operation = made_by.get(value, "")
            # What memory holds is nobody's arithmetic.
            ahead += [] if operation.startswith("tt.load") else VALUE.findall(operation)
    return seen


def _can_wrap(operation: str) -> bool:
    return (
        operation.startswith(("arith.muli", "arith.addi", "arith.subi", "arith.shli"))
        and "i32" in operation
    )
