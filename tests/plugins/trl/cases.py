"""Settings of TRL's GRPO trainer: the losses that it has, and what stands around them."""

from __future__ import annotations

from typing import Any, NamedTuple


class Case(NamedTuple):
    args: dict[str, Any]
    # of `setting.generation`
    made: dict[str, Any] = {}  # noqa: RUF012 - never written
    # of `setting.save_model`
    model: dict[str, Any] = {}  # noqa: RUF012
    # one that GRPOTrainer refuses, by a word of its error
    refused: str = ""


def _loss(kind: str, **args: Any) -> Case:
    return Case({"loss_type": kind, **args})


_CUT = {"cut": (9, 6, 0, 4)}
LOSSES = {
    "grpo": _loss("grpo"),
    "dapo": _loss("dapo"),
    "dr_grpo": _loss("dr_grpo"),
    "bnpo": _loss("bnpo"),
    "luspo": _loss("luspo", importance_sampling_level="sequence"),
    "cispo": _loss("cispo", epsilon_high=1.2),
    "sapo": _loss("sapo"),
    "vespo": _loss("vespo"),
    "grpo, beta": Case({"loss_type": "grpo", "beta": 0.04}, {"ref": True}),
    "dapo, beta, bias correction": Case(
        {"loss_type": "dapo", "beta": 0.04, "use_bias_correction_kl": True}, {"ref": True}
    ),
    "grpo, sequence": _loss("grpo", importance_sampling_level="sequence"),
    "dapo, sequence": _loss("dapo", importance_sampling_level="sequence"),
    "delta": _loss("grpo", delta=1.5),
    "off-policy mask": _loss("grpo", off_policy_mask_threshold=0.05),
    "truncated rows, grpo": Case({"loss_type": "grpo"}, _CUT),
    "truncated rows, dapo": Case({"loss_type": "dapo"}, _CUT),
    "truncated rows, dr_grpo": Case({"loss_type": "dr_grpo"}, _CUT),
    "all rows masked": Case({"loss_type": "dapo"}, {"cut": (0,)}),
    "entropy_coef, dapo": _loss("dapo", entropy_coef=0.01),
    "entropy_coef, bnpo": _loss("bnpo", entropy_coef=0.01),
    "entropy_coef, dr_grpo": _loss("dr_grpo", entropy_coef=0.01),
    "entropy_coef, luspo": _loss(
        "luspo", importance_sampling_level="sequence", entropy_coef=0.01
    ),
    "top_entropy_quantile": Case(
        {"loss_type": "dapo", "top_entropy_quantile": 0.2}, refused="top_entropy_quantile"
    ),
    "adaptive entropy": Case(
        {"loss_type": "dapo", "use_adaptive_entropy": True}, refused="use_adaptive_entropy"
    ),
    "delta below the clip": Case({"loss_type": "grpo", "delta": 1.1}, refused="delta=1.1"),
    "cispo below 1": Case({"loss_type": "cispo"}, refused="epsilon_high=0.2"),
    "entropy_coef, grpo": Case({"loss_type": "grpo", "entropy_coef": 0.01}, refused="entropy_coef"),
    "bias correction of sequences": Case(
        {
            "loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": True,
            "importance_sampling_level": "sequence",
        },
        {"ref": True},
        refused="use_bias_correction_kl",
    ),
    "on policy, dapo": Case({"loss_type": "dapo"}, {"old": None}),
    "on policy, sequence": Case(
        {"loss_type": "grpo", "importance_sampling_level": "sequence"}, {"old": None}
    ),
    "on policy, off-policy mask": Case(
        {"loss_type": "grpo", "off_policy_mask_threshold": 0.05}, {"old": None}
    ),
    "on policy, vespo": Case({"loss_type": "vespo"}, {"old": None}),
    "temperature": Case({"loss_type": "dapo", "temperature": 0.7}, {"temperature": 0.7}),
}  # fmt: skip
MODELS = {
    "tied": Case({"loss_type": "dapo"}, {}, {"tie_word_embeddings": True}),
    "gradient checkpointing": Case({"loss_type": "dapo", "gradient_checkpointing": True}),
    "Gemma2's softcap": Case(
        {"loss_type": "dapo"}, {}, {"kind": "Gemma2", "final_logit_softcapping": 3.0}
    ),
    "Cohere's scale": Case({"loss_type": "dapo"}, {}, {"kind": "Cohere", "logit_scale": 0.5}),
    "a mixture of experts": Case(
        {"loss_type": "dapo", "router_aux_loss_coef": 0.1},
        {},
        {
            "kind": "Qwen3Moe", "num_experts": 4, "num_experts_per_tok": 2,
            "moe_intermediate_size": 16, "output_router_logits": True,
        },
    ),
}  # fmt: skip
# What the same with a head of TRL's is asked for by a user who calls `install()`.
SHORT = ("dapo", "grpo, beta", "grpo, sequence", "truncated rows, grpo", "on policy, dapo", "tied")
