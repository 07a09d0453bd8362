"""LoRA: adapters of peft in a model's layers, and the folder that holds them alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from logitless.rl.recipe import LoraRecipe
from logitless.rl.recipe.model import ALL_LINEAR

# As peft names them, so that PeftModel.from_pretrained reads the folder.
CONFIG_FILE, WEIGHTS = "adapter_config.json", "adapter_model"
FILE = f"{WEIGHTS}.safetensors"
PREFIX, ADAPTER = "base_model.model.", "default"


def config_of(model: Any, recipe: LoraRecipe, base: str) -> Any:
    """peft's LoraConfig; `base`: where the model without adapters is read from."""
    return need_peft().LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        # Sampled and trained log-probs must come from the same function.
        lora_dropout=0.0,
        target_modules=targets_of(model, recipe.targets),
        base_model_name_or_path=str(Path(base).resolve()) if Path(base).exists() else base,
    )


def targets_of(model: Any, wanted: Sequence[str]) -> list[str]:
    """Full names of the linear layers that a recipe means."""
    head = model.get_output_embeddings()
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    found: set[str] = set()
    for target in wanted:
        if target == ALL_LINEAR:
            names = {name for name, layer in linear.items() if layer is not head}
        else:
            names = {name for name in linear if f".{name}".endswith(f".{target}")}
        if not names:
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise ValueError(
                f"recipe key 'lora.targets' must name linear layers of {type(model).__name__}, got "
                f"{target!r}; known: {', '.join([ALL_LINEAR, *known])}"
            )
        found |= names
    return sorted(found)


def inject(model: Any, config: Any, seed: int = 0) -> None:
    """Puts new adapters into the model, which they leave as it is until they are trained; nothing
    else in it has gradients any more."""
    torch.manual_seed(seed)
    need_peft().inject_adapter_in_model(config, model, ADAPTER)


def adapters(model: Any) -> dict[str, Tensor]:
    """The parameters of the adapters, by their names in the model."""
    return {name: p for name, p in model.named_parameters() if f".{ADAPTER}." in name}


def of_layer(layer: Any) -> dict[str, Tensor]:
    """A [r, H] and B [rows, r] of the adapter on a linear layer, where it has one."""
    if not hasattr(layer, "lora_A"):
        return {}
    return {"A": layer.lora_A[ADAPTER].weight, "B": layer.lora_B[ADAPTER].weight}


def as_saved(model: Any) -> dict[str, Tensor]:
    """The parameters of the adapters, by their names in FILE."""
    return {_saved_name(name): p.detach() for name, p in adapters(model).items()}


def save(model: Any, config: Any, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """weights: None: the model's own."""
    config.save_pretrained(folder)
    tensors = as_saved(model) if weights is None else weights
    save_file({name: x.contiguous() for name, x in tensors.items()}, folder / FILE)


def read(model: Any, folder: Path) -> dict[str, Tensor]:
    """What `save` wrote, by the names in the model. ValueError where a tensor is missing."""
    tensors = load_file(folder / FILE)
    for name in adapters(model):
        if _saved_name(name) not in tensors:
            raise ValueError(f"{folder / FILE} must have {_saved_name(name)}, which is missing")
    return {name: tensors[_saved_name(name)] for name in adapters(model)}


def in_folder(folder: str | Path) -> bool:
    """Whether a folder holds adapters alone."""
    return (Path(folder) / CONFIG_FILE).is_file()


def read_config(folder: str | Path) -> Any:
    """The LoraConfig that `save` wrote."""
    return need_peft().LoraConfig.from_pretrained(str(folder))


def need_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ModuleNotFoundError(
            "adapters need the peft package (recipe key 'lora.rank' above 0, or a folder of "
            "adapters): pip install 'logitless[peft]'"
        ) from error
    return peft


def _saved_name(name: str) -> str:
    return PREFIX + name.replace(f".{ADAPTER}.", ".")
