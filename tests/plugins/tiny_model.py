"""The random model that all trainers are tested with."""

from __future__ import annotations

from typing import Any

import torch


def tiny_model(kind: str, spread: float, **options: Any) -> Any:
    """Peaked enough (`spread`) that ratios and entropies differ."""
    import transformers

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "tie_word_embeddings": False, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
        "head_dim": 8,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **options})
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.get_output_embeddings().parameters():
            parameter.normal_(std=spread)
    return model
