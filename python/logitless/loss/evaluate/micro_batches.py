"""The tokens of an optimizer batch that comes as a list of micro-batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from logitless.inputs.checks import shown
from logitless.inputs.tokens import DATA, Sequences, Tokens


def micro_batches(given: dict[str, Any], optional: dict[str, Any]) -> list[dict[str, Any]]:
    """The arguments of each micro-batch: those of the call, where they are no lists."""
    lead, arrays = next(iter(given)), {**given, **optional}
    if not isinstance(arrays[lead], (list, tuple)):
        return [arrays]
    number = len(arrays[lead])
    if not number:
        raise ValueError(f"{lead} must hold at least one micro-batch, got {shown(arrays[lead])}")
    for name, x in arrays.items():
        if name in optional and x is None:
            continue
        if not isinstance(x, (list, tuple)) or len(x) != number or any(y is None for y in x):
            raise ValueError(
                f"{name} must be a list of {number} arrays, one a micro-batch as {lead} is, "
                f"got {shown(x)}"
            )
    return [
        {name: None if x is None else x[i] for name, x in arrays.items()} for i in range(number)
    ]


def joined(parts: list[Tokens]) -> Tokens:
    """Tokens of the same kernels, one after the other, in the widest of their dtypes."""
    if len(parts) == 1:
        return parts[0]

    def cat(name: str) -> Any:
        arrays = [getattr(part, name) for part in parts]
        return None if arrays[0] is None else xp.join(*arrays)

    xp = parts[0].xp
    own = [part.sequences for part in parts]
    known = [x for x in own if x is not None]
    n, sequences = sum(len(part.logp) for part in parts), None
    if len(known) == len(own):
        sequences = Sequences(xp.join(*[x.lengths for x in known]), None, n, xp)
    arrays = {name: cat(name) for name in ("mask", "logp", *DATA, "given_ids")}
    return replace(parts[0], **arrays, shape=(n,), sequences=sequences)
