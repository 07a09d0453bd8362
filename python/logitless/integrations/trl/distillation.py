"""The loss of TRL's distillation trainer, of two heads without the logits of either."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import logitless as ll


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
    parameters returns them. beta: 0 is the forward KL, 1 the reverse, and between them a JSD."""
    weight, bias = _head(student_hidden_states, student_lm_head_weight, student_lm_head_bias)
    with torch.no_grad():
        teacher_weight, teacher_bias = _head(
            teacher_hidden_states, teacher_lm_head_weight, teacher_lm_head_bias
        )
    mask = completion_mask != 0
    kind = {0.0: "forward_kl", 1.0: "reverse_kl"}.get(float(beta), "jsd")
    out = ll.linear_divergence(
        student_hidden_states, weight, teacher_hidden_states.detach(), teacher_weight.detach(),
        mask,
        kind=kind,
        beta=float(beta) if kind == "jsd" else 0.5, temperature=temperature,
        teacher_temperature=temperature, softcap=student_final_logit_softcapping,
        teacher_softcap=teacher_final_logit_softcapping, logit_scale=student_logit_scale,
        teacher_logit_scale=teacher_logit_scale, bias=bias,
        teacher_bias=None if teacher_bias is None else teacher_bias.detach(),
        memory_budget=memory_budget,
    )  # fmt: skip
    count = mask.sum()
    # a rank whose tokens are all masked has a loss of 0
    divisor = count.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
    loss = out.divergence.sum()
    if isinstance(divisor, Tensor):
        divisor = divisor.to(loss.device)
    return loss / divisor, out.entropy.sum(), count


def _head(hidden: Tensor, weight: Tensor, bias: Any) -> tuple[Tensor, Any]:
    """Gathered where FSDP2 shards them, in the dtype of hidden where autocast chooses none."""
    both = [None if x is None else ll.gathered(x) for x in (weight, bias)]
    if not torch.is_autocast_enabled(hidden.device.type):
        both = [None if x is None else x.to(hidden.dtype) for x in both]
    assert both[0] is not None
    return both[0], both[1]
