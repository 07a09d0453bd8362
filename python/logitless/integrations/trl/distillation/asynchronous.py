"""The loss of TRL's AsyncDistillation: a teacher's log-probs of a few candidates per position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from logitless.integrations.trl import hooks
from logitless.integrations.trl.call import HeadCall
from logitless.integrations.trl.columns import candidate_logp
from logitless.integrations.trl.distillation.backbones import open_heads

MODULE = "trl.experimental.async_distillation.async_distillation_trainer"
# Functions of its that are called: a candidate for what lies outside, and the divergence.
TAIL = ("_add_tail_bucket", ("log_probs", "valid_mask"))
DIVERGENCE = (
    "_jsd_divergence",
    ("student_log_probs", "teacher_log_probs", "beta", "support_mask"),
)


def chunked_jsd_loss(theirs: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    add_tail, divergence = (hooks.function(MODULE, *called) for called in (TAIL, DIVERGENCE))

    def ours(
        hidden_valid: Tensor,  # [N, H]
        lm_head_weight: Tensor,  # [V, H]
        lm_head_bias: Tensor | None,
        logit_scale: float,
        final_logit_softcapping: float | None,
        target_ids: Tensor,  # [N, K]
        teacher_target_logps: Tensor,  # [N, K]
        valid_candidate_mask: Tensor,  # [N, K]
        beta: float,
        temperature: float,
        add_tail_bucket: bool,
        teacher_id_idx: Tensor | None,  # [N]
        num_teachers: int,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Sums over positions: the loss, and without gradients the divergence, the entropies of
        student and teacher, and (positions, divergence, entropy) of each teacher in turn."""
        # Whatever they come in, TRL's products are of float32.
        dtype = torch.promote_types(hidden_valid.dtype, lm_head_weight.dtype)
        heads = open_heads()
        if heads is not None:
            call = heads.student.at(hidden_valid.to(dtype), temperature)
        else:
            call = HeadCall(hidden_valid.to(dtype), lm_head_weight.to(dtype), {
                "bias": None if lm_head_bias is None else lm_head_bias.to(dtype),
                "softcap": final_logit_softcapping, "logit_scale": logit_scale,
                "temperature": temperature,
            })  # fmt: skip
        logp, entropy = candidate_logp(
            call, target_ids.clamp(min=0), logits_dtype=torch.float32, **options
        )
        support = valid_candidate_mask
        student, teacher = (
            x.masked_fill(~support, -torch.inf) for x in (logp, teacher_target_logps)
        )
        if add_tail_bucket:
            student, _ = add_tail(student, support)
            teacher, support = add_tail(teacher, support)
        else:
            student, teacher = (x.log_softmax(-1) for x in (student, teacher))
        tokens = divergence(student, teacher, beta=beta, support_mask=support).sum(-1)
        with torch.no_grad():
            entropy_of_teacher = torch.special.entr(teacher.exp()).sum(-1)
            each = torch.stack((torch.ones_like(tokens), tokens, entropy_of_teacher), -1)
            of_teachers = each.new_zeros(num_teachers, 3)
            if teacher_id_idx is not None:
                of_teachers.index_add_(0, teacher_id_idx, each)
            sums = tokens.sum(), entropy.sum(), entropy_of_teacher.sum()
        return tokens.sum(), *sums, of_teachers.flatten()

    return ours
