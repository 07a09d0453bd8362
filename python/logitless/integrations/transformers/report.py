"""What `logitless check` prints of the model in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from logitless.integrations.transformers.probe import probe
from logitless.integrations.transformers.whole import REPORTED, check_whole


def report(folder: Path) -> str:
    """The head that `head_of` finds, in the dtype that the folder's weights have."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no model there: {folder / 'config.json'}")
    model = load(folder)
    head, cut, error, size = probe(model, {})
    dtype = str(head.weight.dtype).removeprefix("torch.")
    cap = "none" if head.softcap is None else f"{head.softcap:.12g}"
    shape = " x ".join(map(str, head.weight.shape))
    lines = {
        "logit_scale": f"{head.logit_scale:.12g}",
        "softcap": cap,
        "bias": "none" if head.bias is None else "yes",
        "cut": f"{cut} columns",
        "error": f"{error:.2g} to model(...).logits, which reach {size:.3g}",
    }
    found = "".join(f"{name:<12} {value}\n" for name, value in lines.items())
    return f"{type(model).__name__}, a head of {shape} in {dtype}\n{found}"


def load(folder: Path) -> Any:
    """The class that the folder's config names, of text alone or of several modalities. ValueError
    where a tensor is missing."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    names = config.architectures or []
    kind = getattr(transformers, names[0], None) if names else None
    found: Any = (kind or transformers.AutoModelForCausalLM).from_pretrained(
        folder, dtype="auto", **REPORTED
    )
    model, missing = found
    check_whole(folder, missing)
    return model
