"""What the ops of a student and a teacher ask of their arguments, checked once."""

from __future__ import annotations

from typing import Any, NamedTuple

from logitless.inputs.arrays import (
    check_dtype,
    check_head,
    check_shape,
    check_weight,
    framework,
    shape_of,
)
from logitless.inputs.checks import choice, is_tensor, require
from logitless.inputs.naming import of_teacher
from logitless.inputs.options import LogitTransform
from logitless.inputs.weights import FLOATS, refuse_special_weight
from logitless.ops.teacher.outputs import KINDS


class Heads(NamedTuple):
    """The chains of both, from their raw logits on."""

    student: LogitTransform
    teacher: LogitTransform

    @classmethod
    def of(
        cls, student: tuple[Any, Any, Any, Any], teacher: tuple[Any, Any, Any, Any]
    ) -> Heads:  # fmt: skip
        """temperature, softcap, logit_scale and bias of each; a teacher's temperature of None is
        the student's."""
        own = LogitTransform(*student)
        temperature, *others = teacher
        with of_teacher():
            other = LogitTransform(own.temperature if temperature is None else temperature, *others)
        return cls(own, other)

    @property
    def arrays(self) -> dict[str, Any]:
        teacher = {f"teacher_{name}": array for name, array in self.teacher.arrays.items()}
        return {**self.student.arrays, **teacher}

    def check(self, op: str, shape: tuple[int, ...], vocab: int, *, sharded: bool) -> None:
        check_head(op, self.student, "[N] or [B, T]", shape, vocab, sharded=sharded)
        with of_teacher():
            check_head(op, self.teacher, "[N] or [B, T]", shape, vocab, sharded=sharded)

    def on_rows(self, shape: tuple[int, ...]) -> Heads:
        return Heads(*(head.on_rows(shape) for head in self))


def check_measure(kind: Any, beta: Any) -> float:
    """beta, of a kind that is known."""
    choice("kind", kind, KINDS)
    x = require("beta", beta, lambda x: 0 < x < 1, "above 0 and below 1")
    if kind != "jsd" and x != 0.5:
        raise ValueError(f"beta must be left at 0.5 with kind={kind!r}, which has none, got {x}")
    return float(x)


def check_pair_logits(
    op: str,
    logits: Any,
    teacher_logits: Any,
    mask: Any,
    heads: Heads,
    noise: dict[str, Any],
    *,
    sharded: bool,
) -> tuple[str, tuple[int, ...]]:
    """ "torch" or "numpy", and the shape of the tokens. `noise`: arrays that are checked elsewhere,
    but for their framework and device."""
    optional = {"mask": mask, **heads.arrays, **noise}
    kind = framework(op, optional, logits=logits, teacher_logits=teacher_logits)
    for name, x in (("logits", logits), ("teacher_logits", teacher_logits)):
        check_dtype(op, name, x, *FLOATS)
    shape = _tokens(op, "logits", "V", logits)
    given = shape_of(logits)
    check_shape(op, "teacher_logits", teacher_logits, "logits.shape", given)
    _check_wide(op, "logits", logits, teacher_logits)
    _check_mask(op, mask, shape)
    heads.check(op, shape, given[-1], sharded=sharded)
    return kind, shape


def check_pair_heads(
    op: str,
    arrays: tuple[Any, Any, Any, Any],  # hidden, weight, teacher_hidden, teacher_weight
    mask: Any,
    heads: Heads,
    noise: dict[str, Any],
    *,
    sharded: bool,
) -> tuple[str, tuple[int, ...]]:
    """As `check_pair_logits`."""
    hidden, weight, teacher_hidden, teacher_weight = arrays
    names = ("hidden", "weight", "teacher_hidden", "teacher_weight")
    optional = {"mask": mask, **heads.arrays, **noise}
    kind = framework(op, optional, **dict(zip(names, arrays, strict=True)))
    if is_tensor(weight):
        refuse_special_weight(op, weight, sharded=sharded)
        with of_teacher():
            refuse_special_weight(op, teacher_weight, sharded=sharded)
    vocab = check_weight(op, hidden, weight)
    with of_teacher():
        others = check_weight(op, teacher_hidden, teacher_weight)
    if others != vocab:
        raise ValueError(
            f"{op}: teacher_weight must have the rows of weight, V = {vocab}, got {others}: cut "
            "the padding of the longer one, which is a view"
        )
    shape = _tokens(op, "hidden", "H", hidden)
    width = shape_of(teacher_hidden)[-1]
    check_shape(op, "teacher_hidden", teacher_hidden, "[*tokens of hidden, H]", (*shape, width))
    _check_wide(op, "hidden", hidden, teacher_hidden)
    _check_mask(op, mask, shape)
    heads.check(op, shape, vocab, sharded=sharded)
    return kind, shape


def _tokens(op: str, name: str, letter: str, array: Any) -> tuple[int, ...]:
    shape = shape_of(array)[:-1]
    if len(shape) not in (1, 2):
        raise ValueError(
            f"{op}: {name} must be [N, {letter}] or [B, T, {letter}], got {list(shape_of(array))}"
        )
    return shape


def _check_wide(op: str, name: str, own: Any, other: Any) -> None:
    wide = [str(x.dtype).endswith("float64") for x in (own, other)]
    if wide[0] != wide[1]:
        raise TypeError(
            f"{op}: teacher_{name} must be float64 where {name} is, and not otherwise, got "
            f"{other.dtype} and {own.dtype}"
        )


def _check_mask(op: str, mask: Any, shape: tuple[int, ...]) -> None:
    if mask is not None:
        check_shape(op, "mask", mask, "the shape of the tokens", shape)
        check_dtype(op, "mask", mask, "bool")
