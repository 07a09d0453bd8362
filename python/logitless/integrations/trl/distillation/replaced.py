"""Every function and method of TRL's distillation trainers that is replaced, as a table."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from logitless.integrations.trl.distillation import (
    asynchronous,
    backbones,
    divergence,
    full_logits,
    self_distillation,
)

DISTILLATION = "trl.trainer.distillation_trainer"


class Replaced(NamedTuple):
    module: str
    # of the module: a function, or Class.method
    name: str
    parameters: tuple[str, ...]
    # (TRL's, keyword arguments of the ops) -> what stands in its place
    made: Callable[[Callable[..., Any], dict[str, Any]], Callable[..., Any]]


def _experimental(name: str, file: str = "") -> str:
    return f"trl.experimental.{name}.{file or name + '_trainer'}"


def _full_logits(
    name: str, trainer: str, more: tuple[str, ...], serves: Callable[[Any], bool]
) -> tuple[Replaced, ...]:
    """more: parameters of its divergence that the others have not."""
    first = ("student_logits", "teacher_logits", "labels", "beta", "temperature", "reduction")
    return (
        Replaced(
            _experimental(name), f"{trainer}.compute_loss",
            ("self", "model", "inputs", "return_outputs", "num_items_in_batch"),
            lambda theirs, options: full_logits.compute_loss(theirs, serves),
        ),
        Replaced(
            _experimental(name), f"{trainer}.generalized_jsd_loss",
            (*first, *more, "num_items_in_batch"), full_logits.generalized_jsd_loss,
        ),
    )  # fmt: skip


def _self_distillation(name: str, trainer: str) -> tuple[Replaced, ...]:
    module, utils = _experimental(name), _experimental(name, "loss_utils")
    softmax = ("logits", "index", "temperature", "row_mask")
    both, alpha = ("student_logits", "teacher_logits"), "distillation_alpha"
    return (
        Replaced(
            module, f"{trainer}._forward_logits",
            ("self", "model", "input_ids", "attention_mask", "logits_to_keep"),
            self_distillation.forward_logits,
        ),
        Replaced(
            module, "compute_full_logit_self_distillation_loss", (*both, alpha),
            self_distillation.full_logit_loss,
        ),
        Replaced(
            module, "compute_topk_self_distillation_loss",
            (*both, "distillation_topk", alpha, "distillation_add_tail"),
            partial(self_distillation.topk_loss, utils),
        ),
        *(
            Replaced(
                place, "selective_log_softmax", softmax, self_distillation.selective_log_softmax
            )
            for place in (module, utils)
        ),
    )  # fmt: skip


def _of_backbones(module: str, trainer: str, inner: tuple[str, ...]) -> tuple[Replaced, ...]:
    """inner: parameters of the method that an engine's forward is sent to."""
    return (
        Replaced(
            module, f"{trainer}.compute_loss",
            ("self", "model", "inputs", "return_outputs", "num_items_in_batch"),
            backbones.compute_loss,
        ),
        Replaced(module, f"{trainer}._compute_loss", inner, backbones.loss_of_unwrapped),
    )  # fmt: skip


TABLE = (
    *_of_backbones(
        DISTILLATION, "DistillationTrainer",
        ("self", "unwrapped_student", "inputs", "num_items_in_batch"),
    ),
    Replaced(
        DISTILLATION, "DistillationTrainer._get_last_hidden_state",
        (
            "self", "unwrapped_model", "input_ids", "attention_mask", "logits_to_keep",
            "pixel_values", "image_grid_thw", "pixel_attention_mask", "spatial_shapes",
            "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids",
        ),
        backbones.last_hidden_state,
    ),
    *_of_backbones(
        asynchronous.MODULE, "AsyncDistillationTrainer", ("self", "unwrapped_model", "inputs")
    ),
    Replaced(
        DISTILLATION, "_chunked_divergence_loss",
        (
            "student_hidden_states", "teacher_hidden_states", "student_lm_head_weight",
            "teacher_lm_head_weight", "completion_mask", "beta", "num_items_in_batch",
            "student_lm_head_bias", "teacher_lm_head_bias", "student_logit_scale",
            "teacher_logit_scale", "student_final_logit_softcapping",
            "teacher_final_logit_softcapping", "temperature",
        ),
        lambda theirs, options: partial(divergence.divergence_loss, **options),
    ),
    Replaced(
        asynchronous.MODULE, "_chunked_jsd_loss",
        (
            "hidden_valid", "lm_head_weight", "lm_head_bias", "logit_scale",
            "final_logit_softcapping", "target_ids", "teacher_target_logps",
            "valid_candidate_mask", "beta", "temperature", "add_tail_bucket", "teacher_id_idx",
            "num_teachers", "chunk_size",
        ),
        asynchronous.chunked_jsd_loss,
    ),
    *_full_logits("gkd", "GKDTrainer", (), lambda trainer: True),
    *_full_logits(
        "gold", "GOLDTrainer", ("logits_are_probs",),
        lambda trainer: not trainer.use_uld_loss or trainer.teacher_tokenizer is None,
    ),
    *_full_logits(
        "iw_opd", "IWOPDTrainer", ("top_k", "add_tail"),
        lambda trainer: (
            trainer.distillation_objective == "jsd"
            and not trainer.use_teacher_server
            and trainer.loss_top_k == 0
        ),
    ),
    *_self_distillation("sdft", "SDFTTrainer"),
    *_self_distillation("sdpo", "SDPOTrainer"),
)  # fmt: skip
