"""ll.head_of on every class of transformers that makes text: right, or refused by name."""

from __future__ import annotations

import sys
from collections import Counter
from functools import cache
from typing import Any, NamedTuple

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import logitless as ll
from tests.integrations.tiny_models import (
    model_types,
    tiny,
    tiny_bytes,
    types_of_several_modalities,
)

pytestmark = pytest.mark.filterwarnings("ignore")


# What is larger is not made: a few configs cannot be said small.
LARGEST = 1 << 30


class Outcome(NamedTuple):
    kind: str
    detail: str = ""


@cache
def outcome(
    model_type: str,
    dtype: torch.dtype = torch.float32,
    tied: bool = False,
    auto: Any = AutoModelForCausalLM,
) -> Outcome:
    ids = torch.randint(3, 80, (2, 9), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids}
    try:
        # of text alone, all are small
        size = 0 if auto is AutoModelForCausalLM else tiny_bytes(model_type, auto)
        if size > LARGEST:
            return Outcome("too large", f"{size >> 20} MiB")
        model = tiny(model_type, dtype, auto, tie_word_embeddings=tied)
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
        with torch.no_grad():
            logits = model(**inputs).logits
    except Exception as error:
        return Outcome("not buildable", f"{type(error).__name__}: {error}".replace("\n", " ")[:100])
    try:
        head = ll.head_of(model)
    except ValueError as error:
        named = str(error).startswith(f"head_of: {type(model).__name__}: ")
        return Outcome("refused" if named else "wrong", str(error))
    with torch.no_grad():
        hidden = head.hidden(model, **inputs)
        stats = ll.linear_token_stats(hidden, head.weight, ids, **head.options)
    expected = logits.double().log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
    off = float((stats.logp - expected).abs().max())
    # Some give float32 logits of any weights.
    allowed = 8 * torch.finfo(logits.dtype).eps * (4 + float(logits.abs().max()))
    return Outcome("right" if off <= allowed else "wrong", f"{off:.2g}, allowed {allowed:.2g}")


@pytest.mark.parametrize("model_type", model_types())
def test_a_class_is_right_or_refused(model_type: str) -> None:
    kind, detail = outcome(model_type)
    if kind == "not buildable":
        pytest.skip(f"not buildable small: {detail}")
    assert kind in ("right", "refused"), detail


def counted(found: dict[str, Outcome], capsys: pytest.CaptureFixture[str]) -> Counter[str]:
    """How many of each kind, which is printed with the reasons of all that are not right."""
    count = Counter(kind for kind, _ in found.values())
    with capsys.disabled():
        sys.stdout.write(f"\n{len(found)} model types: {dict(count)}\n")
        for model_type, (kind, detail) in found.items():
            if kind != "right":
                sys.stdout.write(f"{kind}: {model_type}: {detail}\n")
    assert not count["wrong"]
    # 2 of 196 are refused with transformers 5.24, and 1 of the 100 of several modalities.
    assert count["refused"] <= 0.05 * len(found)
    return count


@pytest.mark.slow
def test_how_many(capsys: pytest.CaptureFixture[str]) -> None:
    found = {model_type: outcome(model_type) for model_type in model_types()}
    count = counted(found, capsys)
    assert count["right"] >= 0.8 * len(found)


FAMILIES = [
    "llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "cohere", "cohere2", "recurrent_gemma",
    "granite", "mpt", "gpt2", "phi", "xlstm", "olmo2", "mamba", "hyperclovax", "falcon_h1", "bert",
]  # fmt: skip


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_families_in_float64(model_type: str, tied: bool) -> None:
    kind, detail = outcome(model_type, torch.float64, tied)
    assert kind == "right", detail


@cache
def of_modalities(model_type: str) -> Outcome:
    return outcome(model_type, auto=AutoModelForImageTextToText)


# Of those that must be right, in place of being skipped.
KNOWN = {
    "aya_vision", "cohere2_vision", "gemma3", "hyperclovax_vision_v2", "idefics3", "internvl",
    "kimi_k25", "llava", "llava_onevision", "minimax_m3_vl", "mistral3", "mllama", "muse_glimmer",
    "paligemma", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_vl", "qwen3_vl_moe", "smolvlm",
}  # fmt: skip


@pytest.mark.parametrize("model_type", types_of_several_modalities())
def test_models_of_several_modalities(model_type: str) -> None:
    kind, detail = of_modalities(model_type)
    if kind in ("not buildable", "too large") and model_type not in KNOWN:
        pytest.skip(f"{kind}: {detail}")
    assert kind == "right" or (kind == "refused" and model_type not in KNOWN), detail


@pytest.mark.slow
def test_how_many_of_several_modalities(capsys: pytest.CaptureFixture[str]) -> None:
    """What is left are types whose text needs an image, whose configs have rules that small sizes
    break, or whose packages are not there."""
    found = {model_type: of_modalities(model_type) for model_type in types_of_several_modalities()}
    count = counted(found, capsys)
    assert count["right"] >= 0.6 * len(found)
    assert count["too large"] <= 2
