"""A call that is to be made: the function's name, its arguments, and which of them it writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Case:
    """`name` is "module.function" or "module.Class.method".

    Keys "own.x" go to the constructor of the rows, "teacher.x" to that of the teacher's, "noise.x"
    to that of the teacher's noise, "kept.x" to that of the top-k.

    Array arguments are NumPy arrays, in memory that is placed before the call.
    """

    name: str
    arguments: dict[str, Any]
    written: tuple[str, ...] = ()
    # what may be one array: backward writes over its tile
    may_share: tuple[str, str] | None = None
    # 16-bit words of these are given out as bfloat16
    bfloat: tuple[str, ...] = ()
    # where a valid call may raise all the same: what it says
    complaints: tuple[str, ...] = ()
    spoilt: list[str] = field(default_factory=list)
    # a lie that no call may take
    must_raise: bool = False


def call(core: Any, case: Case, arguments: dict[str, Any]) -> Any:
    def under(prefix: str) -> dict[str, Any]:
        start = prefix + "."
        return {k.removeprefix(start): v for k, v in arguments.items() if k.startswith(start)}

    mine = {key: value for key, value in arguments.items() if "." not in key}
    own, kept, teacher, noise = (under(x) for x in ("own", "kept", "teacher", "noise"))
    if noise:
        on_device = "cuda" in case.name.lower()
        kind = core.divergence.CudaNoise if on_device else core.divergence.Noise
        mine["noise"] = kind(**noise)
    module, target, *method = case.name.split(".")
    function = getattr(getattr(core, module), target)

    def rows(**made_of: Any) -> Any:
        return (core.rows.CudaRows if "device" in made_of else core.rows.Rows)(**made_of)

    if target == "CudaPair" and own:
        pair = {"rows": rows(**own), "teacher": rows(**teacher)}
        own, teacher = (pair, {}) if method != ["__init__"] else ({}, {})
        mine |= {} if own else pair
    if teacher:
        mine["teacher"] = rows(**teacher)
    if kept:
        on_device = "cuda" in case.name.lower()
        mine["topk"] = (core.topk.CudaTopK if on_device else core.topk.TopK)(**kept)
    if method and method != ["__init__"]:
        function = getattr(function(**own) if own else function, *method)
    elif own:
        mine["rows"] = rows(**own)
    return function(**mine)
