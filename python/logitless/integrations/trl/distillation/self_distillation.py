"""Trainers whose teacher is the student that knows more: SDFT and SDPO.

Their losses are functions of logits of completions. States stand for logits, and these functions
are made for them; what else meets states is an error, for they are no tensor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

import logitless as ll
from logitless.integrations.trl import hooks
from logitless.integrations.trl.call import HeadCall
from logitless.integrations.trl.columns import candidate_logp, likeliest
from logitless.integrations.trl.distillation.divergence import divergence_of
from logitless.integrations.trl.distillation.states import states_for_logits

# Functions of its loss_utils that are called: a candidate for what lies outside of those that are
# looked at, and the divergence.
TAIL = ("add_tail_bucket", ("log_probs",))
DIVERGENCE = ("compute_divergence", ("student_log_probs", "teacher_log_probs", "alpha"))


class States(NamedTuple):
    """What stands where logits of completions stood."""

    call: HeadCall  # of hidden [B, T, H]
    mask: Tensor  # [B, T] bool, tokens of the completions

    def sum(self) -> Tensor:
        """What a loss of no token hangs on."""
        return self.call.hidden.sum()


def forward_logits(theirs: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def ours(
        self: Any, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int
    ) -> Any:
        # The loss against a server's teacher takes a log_softmax of the logits itself.
        if self.use_teacher_server:
            return theirs(self, model, input_ids, attention_mask, logits_to_keep)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
        if "logits_to_keep" in self.model_kwarg_keys:
            inputs["logits_to_keep"] = logits_to_keep + 1
        with states_for_logits(model) as head:
            states = model(**inputs).logits
        # The last one predicts what comes after the completion.
        call = head.at(states[:, -logits_to_keep - 1 : -1], self.temperature)
        return States(call, attention_mask[:, -logits_to_keep:] != 0)

    return ours


def selective_log_softmax(
    theirs: Callable[..., Any], options: dict[str, Any]
) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def ours(logits: Any, index: Tensor, *more: Any, **named: Any) -> Any:
        if not isinstance(logits, States):
            return theirs(logits, index, *more, **named)
        call, mask = logits
        stats = ll.linear_token_stats(
            call.hidden, call.weight, index, mask=mask, **call.options, **options
        )
        return stats.logp

    return ours


def full_logit_loss(theirs: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def ours(student_logits: Any, teacher_logits: Any, *, distillation_alpha: float) -> Any:
        if not isinstance(student_logits, States):
            return theirs(student_logits, teacher_logits, distillation_alpha=distillation_alpha)
        (student, mask), (teacher, _) = student_logits, teacher_logits
        return divergence_of(student, teacher, mask, distillation_alpha, **options).divergence

    return ours


def topk_loss(
    utils: str, theirs: Callable[..., Any], options: dict[str, Any]
) -> Callable[..., Any]:
    """utils: the module of the functions that it calls."""
    add_tail, divergence = (hooks.function(utils, *called) for called in (TAIL, DIVERGENCE))

    @functools.wraps(theirs)
    def ours(
        student_logits: Any,
        teacher_logits: Any,
        *,
        distillation_topk: int,
        distillation_alpha: float,
        distillation_add_tail: bool,
    ) -> Any:
        if not isinstance(student_logits, States):
            return theirs(
                student_logits, teacher_logits, distillation_topk=distillation_topk,
                distillation_alpha=distillation_alpha, distillation_add_tail=distillation_add_tail,
            )  # fmt: skip
        (student, mask), (teacher, _) = student_logits, teacher_logits
        ids = likeliest(student, distillation_topk)
        both = [candidate_logp(call, ids, mask, **options)[0] for call in (student, teacher)]
        if distillation_add_tail:
            both = [add_tail(logp) for logp in both]
        else:
            both = [logp.log_softmax(-1) for logp in both]
        return divergence(*both, distillation_alpha).masked_fill(~mask, 0)

    return ours
