"""Every class of transformers that makes text, as small as it goes, with random weights."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

VOCAB, LAYERS = 97, 2
# A device context keeps the functions that it serves from its first use on: here, before the
# fixture of poisoned memory stands for one of them.
with torch.device("meta"):
    torch.empty(0)
# What a config calls its sizes, and the small ones; the first pattern that a name matches counts.
SIZES: dict[str, int] = {
    r"first_k_dense_replace|num_kv_shared_layers|num_dense_layers": 0,
    r"vocab_size|n_vocab|vocab_size_per_layer_input|decoder_vocab_size|n_token": VOCAB,
    r"unpadded_vocab_size": VOCAB - 6,
    r"encoder_hash_byte_group_vocab": 64,
    r"(n_|num_)?(hidden_|decoder_|encoder_)?layers?|num_.*_layers|n_layer|num_blocks|depth": LAYERS,
    r"hidden_size|d_model|n_embd|embed_dim|embedding_size|dim|word_embed_proj_dim|hidden_dim|"
    r"emb_dim|hidden_size_global|(out|text)_hidden_size|adapter_in(_dim|put_size)|codebook_dim": 32,
    r"num_key_value_heads|num_kv_heads|n_kv_heads": 2,
    r"(n_|num_)(attention_|decoder_attention_|encoder_attention_)?heads?|n_head|"
    r"(en|de)coder_attention_heads": 4,
    r"head_dim|global_head_dim|attention_head_size|kv_channels|d_kv|v_head_dim|"
    r"qk_(nope|rope)_head_dim": 8,
    r"linear_(key_|value_)?head_dim": 8,
    r"linear_num_(key_|value_)?heads|rotary_dim": 4,
    r"(q|kv|o)_lora_rank": 16,
    r"index_(head_dim|n_heads|topk|kpool)": 8,
    r"mamba_(n_heads|d_head)": 8,
    r".*(intermediate|ffn|ff|inner).*(size|dim)|d_ff|n_inner|d_inner|ffn_hidden_size": 48,
    r"max_position_embeddings|n_positions|n_ctx|max_seq_len|seq_length|max_sequence_length": 64,
    r"(n_|num_)(routed_|local_)?experts": 4,
    r"num_experts_per_tok(en)?|top_k_experts|moe_top_k": 2,
    r"n_group|topk_group|num_expert_group": 1,
    r"pad_token_id": 0,
}
# They are None where a config derives them, and some do not.
DERIVED = ("pad_token_id", "head_dim", "num_key_value_heads", "unpadded_vocab_size")
# Options of heads, away from neutral.
OPTIONS = {
    "final_logit_softcapping": 3.0,
    "logits_soft_cap": 3.0,
    "output_logit_soft_cap": 3.0,
    "logit_scale": 0.7,
    "logits_scaling": 3.0,
    "lm_head_multiplier": 0.7,
    "output_multiplier": 0.7,
    "logits_mup_width_multiplier": 3.0,
}
OTHERS = {"is_decoder": True, "use_cache": False, "tie_word_embeddings": False}
# What the patterns do not know of a model type.
OWN: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1},
    "reformer": {"axial_pos_embds": False},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}


def small_config(model_type: str, **more: Any) -> PreTrainedConfig:
    kind = CONFIG_MAPPING[model_type]
    changes = _small(kind().to_dict()) | OWN.get(model_type, {}) | more
    config: PreTrainedConfig = kind(**changes)
    return config


def _small(content: dict[str, Any]) -> dict[str, Any]:
    """What of a config changes, and of the configs in it."""
    changes: dict[str, Any] = {}
    layers = content.get("num_hidden_layers")
    for name, value in content.items():
        if isinstance(value, dict) and name.endswith("_config") and name != "per_layer_config":
            changes[name] = {**value, **_small(value)}
        elif name == "rope_parameters" and value and _is_mrope(content):
            # Pairs of a head's entries for time, height and width.
            section = [2, 1, 1] if value.get("partial_rotary_factor", 1) == 1 else [2, 0, 0]
            changes[name] = {**value, "mrope_section": section}
        elif name == "per_layer_config" and value:
            changes[name] = {key: x for key, x in value.items() if int(key) < LAYERS}
        elif isinstance(value, list) and len(value) == layers:
            # Both kinds of a hybrid, as far as there are two.
            changes[name] = [value[0], value[-1]]
        elif name in OPTIONS or name in OTHERS:
            changes[name] = (OPTIONS | OTHERS)[name]
        elif (isinstance(value, int) and not isinstance(value, bool)) or name in DERIVED:
            size = next((x for pattern, x in SIZES.items() if re.fullmatch(pattern, name)), None)
            if size is not None:
                changes[name] = size
    if "kv_lora_rank" in content:
        # Latent attention has a key for each head.
        changes["num_key_value_heads"] = changes["num_attention_heads"]
    return changes


def _is_mrope(content: dict[str, Any]) -> bool:
    kinds = ("vl", "glm4v", "glm_ocr", "qwen2_5_omni")
    named = any(kind in content.get("model_type", "") for kind in kinds)
    return named or "mrope_section" in content["rope_parameters"]


def tiny_bytes(model_type: str, auto: Any, **more: Any) -> int:
    """Of the model's float32 parameters; none of them is made."""
    with torch.device("meta"):
        model = auto.from_config(small_config(model_type, **more))
    return 4 * sum(parameter.numel() for parameter in model.parameters())


def tiny(
    model_type: str,
    dtype: torch.dtype = torch.float32,
    auto: Any = AutoModelForCausalLM,
    **more: Any,
) -> Any:
    """The model, its head's weight and bias large enough that every option shows."""
    torch.manual_seed(0)
    model = auto.from_config(small_config(model_type, **more), dtype=dtype).eval()
    layer = model.get_output_embeddings()
    if layer is not None:
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.normal_()
    return model


def model_types() -> list[str]:
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def types_of_several_modalities() -> list[str]:
    return sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
