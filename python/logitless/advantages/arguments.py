"""What a function of advantages is given, checked once: answers in groups, or tokens of answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from logitless.advantages.arrays import arrays_of
from logitless.advantages.groups import Groups
from logitless.inputs.arrays import check_dtype, check_shape, framework, shape_of
from logitless.inputs.checks import shown
from logitless.inputs.gradients import refuse_grad
from logitless.inputs.masks import as_mask
from logitless.inputs.tokens import Array, Bools, Float64s, Int64s
from logitless.inputs.weights import FLOATS

INTEGERS = ("int64", "int32")


@dataclass(frozen=True)
class Answers:
    """One number per answer, [B] with ids or [G, K]."""

    groups: Groups
    # float64, flat, 0 where an answer does not count
    values: tuple[Float64s, ...]
    shape: tuple[int, ...]
    # of the rewards, 16-bit floats widened
    dtype: Any

    def result(self, advantages: Float64s) -> Array:
        """Shaped like the rewards, of their dtype, 0 where an answer does not count."""
        xp = self.groups.xp
        held = xp.where(self.groups.counts, advantages, 0.0)
        return xp.cast(held, self.dtype).reshape(self.shape)


class TokenRows(NamedTuple):
    """Tokens [B, T] of B answers."""

    xp: Any
    mask: Bools
    # float64, 0 outside the mask
    values: tuple[Float64s, ...]
    dtype: Any

    def result(self, values: Float64s) -> Array:
        return self.xp.cast(self.xp.where(self.mask, values, 0.0), self.dtype)


def answers(
    op: str,
    rewards: Array,  # [B] with groups, or [G, K]
    groups: Array | None,  # int64 or int32 [B]
    mask: Array | None,  # bool, shaped like rewards
    *,
    ungrouped: bool = False,
    **more: Array | None,  # shaped like rewards
) -> Answers:
    """ungrouped: [B] needs no groups."""
    framework(op, {"groups": groups, "mask": mask, **more}, rewards=rewards)
    shape = shape_of(rewards)
    if len(shape) == 2 and groups is not None:
        raise ValueError(
            f"groups goes with rewards [B], one id an answer; rewards {list(shape)} are groups of "
            f"{shape[1]} already"
        )
    if len(shape) != 2 and (len(shape) != 1 or (groups is None and not ungrouped)):
        raise ValueError(
            "rewards must be [G, K], G groups of K answers, or [B] with groups=, the id of each "
            f"answer's group; got rewards {list(shape)}{'' if groups is None else ' with groups'}"
        )
    xp = arrays_of(rewards)
    counts = _truths(xp, mask, "rewards", shape, rewards)
    given: dict[str, Array] = {"rewards": rewards}
    given.update((name, x) for name, x in more.items() if x is not None)
    values, dtype = _floats(op, xp, given, counts)
    ids, number = _ids(op, xp, groups, shape, rewards)
    flat = tuple(x.reshape(-1) for x in values)
    return Answers(Groups(xp, ids, number, counts.reshape(-1)), flat, shape, dtype)


def token_rows(op: str, mask: Array, **given: Array | None) -> TokenRows:
    """Of `given`, the first says which kind of array; None are left out."""
    arrays = {name: x for name, x in given.items() if x is not None}
    framework(op, mask=mask, **arrays)
    first, leading = next(iter(arrays.items()))
    shape = shape_of(leading)
    if len(shape) != 2 or shape[1] < 1:
        raise ValueError(
            f"{first} must be [B, T], T >= 1 tokens of B answers, got shape {list(shape)}"
        )
    xp = arrays_of(leading)
    truths = _truths(xp, mask, first, shape, leading)
    values, dtype = _floats(op, xp, arrays, truths)
    return TokenRows(xp, truths, values, dtype)


def row_groups(op: str, rows: TokenRows, groups: Array) -> Groups:
    """The answers [B] of token rows, in groups; those without a token do not count."""
    framework(op, groups=groups, mask=rows.mask)
    b = shape_of(rows.mask)[0]
    ids, number = _ids(op, rows.xp, groups, (b,), groups)
    return Groups(rows.xp, ids, number, rows.mask.any(1))


def demand(xp: Any, name: str, values: Array, good: Bools, expected: str) -> None:
    """Refuses the first value that is not good. Whether there is one, a device is asked."""
    if bool(good.all()):
        return
    place = [int(i) for i in xp.first(~good)]
    raise ValueError(f"{name} must be {expected}, got {float(values[tuple(place)])} at {place}")


def _truths(xp: Any, mask: Array | None, name: str, shape: tuple[int, ...], like: Array) -> Bools:
    if mask is None:
        return xp.isfinite(xp.zeros(shape, like))
    if shape_of(mask) != shape:
        raise ValueError(f"mask must be shaped like {name}, {list(shape)}, got {shown(mask)}")
    mask = as_mask(mask)
    if xp.kind(mask.dtype) != "b":
        raise TypeError(f"mask must be bool, got {shown(mask)}")
    return xp.truths(mask)


def _floats(
    op: str, xp: Any, given: dict[str, Array], counts: Bools
) -> tuple[tuple[Float64s, ...], Any]:
    refuse_grad(**given)
    (first, leading), found, dtype = next(iter(given.items())), [], None
    shape = list(shape_of(leading))
    for name, x in given.items():
        if list(shape_of(x)) != shape:
            raise ValueError(f"{name} must be shaped like {first}, {shape}, got {shown(x)}")
        check_dtype(op, name, x, *(INTEGERS if name == "lengths" else FLOATS))
        held = xp.array(name, x)
        dtype = held.dtype if dtype is None else dtype
        demand(xp, name, held, xp.isfinite(held) | ~counts, "finite where they count")
        found.append(xp.where(counts, xp.cast(held, xp.float64), 0.0))
    return tuple(found), dtype


def _ids(
    op: str, xp: Any, groups: Array | None, shape: tuple[int, ...], like: Array
) -> tuple[Int64s, int]:
    if groups is None:
        number, each = shape if len(shape) == 2 else (1, shape[0])
        numbers = xp.arange(number, like)
        return (numbers[:, None] + xp.cast(xp.zeros((1, each), like), xp.int64)).reshape(-1), number
    check_shape(op, "groups", groups, "[B]", shape)
    check_dtype(op, "groups", groups, *INTEGERS)
    return xp.numbered(groups), shape[0]
