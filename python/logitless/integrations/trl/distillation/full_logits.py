"""Trainers whose loss takes the logits of a student and of a teacher: GKD, GOLD, IW-OPD.

Their own method stays, which runs both models, shifts and finds labels. While it does, states stand
for logits, and the divergence that it calls is of two heads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from torch import Tensor

from logitless.integrations.trl import hooks
from logitless.integrations.trl.distillation.divergence import divergence_of, mean_of_tokens
from logitless.integrations.trl.distillation.states import OpenHead, states_for_logits


class Pair:
    """Heads of the student and the teacher of a loss, and how often its divergence was called."""

    def __init__(self, student: OpenHead, teacher: OpenHead) -> None:
        self.student, self.teacher, self.calls = student, teacher, 0


_open: ContextVar[Pair | None] = ContextVar("logitless_trl_pair", default=None)


def compute_loss(theirs: Callable[..., Any], serves: Callable[[Any], bool]) -> Callable[..., Any]:
    """serves: whether the divergence of this trainer is that of two whole distributions."""

    @functools.wraps(theirs)
    def ours(
        self: Any,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        # Who asks for outputs wants logits.
        if return_outputs or not serves(self):
            return theirs(self, model, inputs, return_outputs, num_items_in_batch)
        with (
            states_for_logits(model) as student,
            states_for_logits(self.teacher_model) as teacher,
        ):
            pair = Pair(student, teacher)
            token = _open.set(pair)
            try:
                loss = theirs(self, model, inputs, False, num_items_in_batch)
            finally:
                _open.reset(token)
        if pair.calls != 1:
            # States that anything else took for logits would be a wrong loss.
            name = f"{type(self).__name__}.compute_loss"
            raise hooks.unknown(f"one call of generalized_jsd_loss in {name}", f"{pair.calls}")
        return loss

    return ours


def generalized_jsd_loss(theirs: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """Of states, while a loss of `compute_loss` is open; TRL's own otherwise."""

    @functools.wraps(theirs)
    def ours(
        student_logits: Tensor,
        teacher_logits: Tensor,
        labels: Tensor | None = None,
        beta: float = 0.5,
        temperature: float = 1.0,
        reduction: str = "batchmean",
        **more: Any,
    ) -> Any:
        pair = _open.get()
        if pair is None:
            return theirs(
                student_logits, teacher_logits, labels, beta, temperature, reduction, **more
            )
        assert labels is not None
        pair.calls += 1
        mask = labels != -100
        out = divergence_of(
            pair.student.at(student_logits, temperature),
            pair.teacher.at(teacher_logits, temperature),
            mask,
            beta,
            **options,
        )
        return mean_of_tokens(out.divergence, mask, more.get("num_items_in_batch"))

    return ours
