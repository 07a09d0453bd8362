"""The divergence of two heads without the logits of either, as TRL's trainers reduce it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import logitless as ll
from logitless.integrations.trl.call import HeadCall
from logitless.integrations.trl.distillation.backbones import open_heads


def divergence_loss(
    student_hidden_states: Tensor,  # [B, K, H]
    teacher_hidden_states: Tensor,  # [B, K, G]
    student_lm_head_weight: Tensor,  # [V, H]
    teacher_lm_head_weight: Tensor,  # [V, G]
    completion_mask: Tensor,  # [B, K]
    beta: float,
    num_items_in_batch: Tensor | int | None = None,
    student_lm_head_bias: Tensor | None = None,
    teacher_lm_head_bias: Tensor | None = None,
    student_logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    student_final_logit_softcapping: float | None = None,
    teacher_final_logit_softcapping: float | None = None,
    temperature: float = 1.0,
    *,
    memory_budget: int | str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, the sum of the student's entropies, the number of tokens), as TRL's function of these
    parameters returns them. beta: 0 is the forward KL, 1 the reverse, and between them a JSD.

    In a loss of a trainer's, the heads are those of its models.
    """
    heads = open_heads()
    if heads is not None and heads.teacher is not None:
        student = heads.student.at(student_hidden_states, temperature)
        with torch.no_grad():
            teacher = heads.teacher.at(teacher_hidden_states, temperature)
    else:
        student = _given(
            student_hidden_states, student_lm_head_weight, student_lm_head_bias,
            student_final_logit_softcapping, student_logit_scale, temperature,
        )  # fmt: skip
        with torch.no_grad():
            teacher = _given(
                teacher_hidden_states, teacher_lm_head_weight, teacher_lm_head_bias,
                teacher_final_logit_softcapping, teacher_logit_scale, temperature,
            )  # fmt: skip
    mask = completion_mask != 0
    out = divergence_of(student, teacher, mask, beta, memory_budget=memory_budget)
    loss = mean_of_tokens(out.divergence, mask, num_items_in_batch)
    return loss, out.entropy.sum(), mask.sum()


def divergence_of(
    student: HeadCall,
    teacher: HeadCall,
    mask: Tensor,
    beta: float,
    *,
    memory_budget: int | str | None = None,
) -> Any:
    """What linear_divergence returns, under TRL's beta."""
    kind = {0.0: "forward_kl", 1.0: "reverse_kl"}.get(float(beta), "jsd")
    with torch.no_grad():
        options = {**teacher.options}
        teacher_weight = _merged(teacher.weight, options.pop("adapter", []))
        of_teacher: dict[str, Any] = {
            f"teacher_{name}": x.detach() if isinstance(x, Tensor) else x
            for name, x in options.items()
        }
    return ll.linear_divergence(
        student.hidden, student.weight, teacher.hidden.detach(), teacher_weight.detach(), mask,
        kind=kind, beta=float(beta) if kind == "jsd" else 0.5, memory_budget=memory_budget,
        **student.options, **of_teacher,
    )  # fmt: skip


def mean_of_tokens(x: Tensor, mask: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """The sum over the tokens of the whole batch, whose number is given, or over those here."""
    # a rank whose tokens are all masked has a loss of 0
    count = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    return x.sum() / (count.to(x.device) if isinstance(count, Tensor) else count)


def _merged(weight: Tensor, adapters: Any) -> Tensor:
    for A, B, scale in adapters:
        weight = weight + (scale * (B @ A)).to(weight.dtype)
    return weight


def _given(
    hidden: Tensor,
    weight: Tensor,  # [V, H]
    bias: Any,  # [V]
    softcap: float | None,
    logit_scale: float,
    temperature: float,
) -> HeadCall:
    """Gathered where FSDP2 shards them, in the dtype of hidden where autocast chooses none."""
    both = [None if x is None else ll.gathered(x) for x in (weight, bias)]
    if not torch.is_autocast_enabled(hidden.device.type):
        both = [None if x is None else x.to(hidden.dtype) for x in both]
    assert both[0] is not None
    chain = {"softcap": softcap, "logit_scale": logit_scale, "temperature": temperature}
    return HeadCall(hidden, both[0], {"bias": both[1], **chain})
