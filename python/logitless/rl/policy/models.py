"""Models and their tokenizers: read, or made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from logitless.integrations.transformers.gguf import gguf_in, load_gguf, smollm2
from logitless.integrations.transformers.whole import REPORTED, check_whole
from logitless.rl.policy.tokenizers import make_tokenizer
from logitless.rl.recipe import ModelRecipe

# Head rows of a model from scratch are padded to this, as models are.
VOCAB_MULTIPLE = 128
# model.path of the chat model that pip has, where no folder has that name.
SMOLLM2_PATH = "smollm2"
# As save_pretrained names the file, without its suffix.
WEIGHTS = "model"


def read_model(folder: str | Path) -> tuple[Any, Any]:
    """(model, tokenizer) in fp32 from a folder, a GGUF file or a hub name. FileNotFoundError where
    there is none; ValueError where a tensor is missing."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if folder == SMOLLM2_PATH and not Path(SMOLLM2_PATH).exists():
        return smollm2()
    file = gguf_in(folder)
    if file is not None:
        return load_gguf(file)
    if Path(folder).is_dir() and not Path(folder, "config.json").is_file():
        raise FileNotFoundError(f"no model can be read from {folder}: it has no config.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        found: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **REPORTED)
    except (OSError, ValueError, SafetensorError) as error:
        why = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"no model can be read from {folder}: {why}") from error
    model, report = found
    check_whole(folder, report)
    return model, tokenizer


def tensors_as_saved(model: Any) -> dict[str, Tensor] | None:
    """Parameters and buffers by their names in what save_pretrained writes; None where it writes
    others, made of them: experts apart that the model has in one tensor."""
    from transformers.core_model_loading import revert_weight_conversion

    found = {name: p.detach() for name, p in model.named_parameters()} | buffers(model)
    outline = {
        name: torch.empty(x.shape, dtype=x.dtype, device="meta") for name, x in found.items()
    }
    after = revert_weight_conversion(model, {**outline})
    same = after.keys() == outline.keys() and all(after[name] is x for name, x in outline.items())
    # what torch joins are numbers with a point
    same = same and all(x.is_floating_point() for x in found.values())
    return found if same and not model._keys_to_ignore_on_save else None


def buffers(model: Any) -> dict[str, Tensor]:
    """Those of state_dict()."""
    found: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        lasting = module._buffers.keys() - module._non_persistent_buffers_set
        found |= {f"{prefix}.{name}".lstrip("."): module._buffers[name] for name in lasting}
    return {name: x.detach() for name, x in found.items() if x is not None}


def model_from_scratch(recipe: ModelRecipe, seed: int) -> tuple[Any, Any]:
    """(model, tokenizer): a small Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(recipe.tokenizer)
    rows = recipe.vocab_size or -(-len(tokenizer) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    if rows < len(tokenizer):
        raise ValueError(
            f"model.vocab_size must be at least the tokenizer's {len(tokenizer)}, got {rows}"
        )
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=recipe.max_positions,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config), tokenizer


def silence_bars() -> None:
    """Ends transformers' bars for each file it reads or writes, which would tear the live line."""
    from transformers.utils import logging

    logging.disable_progress_bar()
