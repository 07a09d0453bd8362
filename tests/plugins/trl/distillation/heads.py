"""Models whose configs do not say what they make of their head's product, and a distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.integrations.tiny_models import tiny
from tests.plugins.trl.setting import PROMPT, VOCAB, arguments, prompts, quiet, tokenizer

# Softcap and scale are away from neutral. The first is described by its config; the next three are
# not; and the heads of the last three read other states than the last ones of their `base_model`.
KINDS = ("gemma2", "mpt", "recurrent_gemma", "xlstm", "inkling_text", "llama4_text", "bert")
# whose weight has more rows than that
OPTIONS = {"inkling_text": {"vocab_size": VOCAB + 6, "unpadded_vocab_size": VOCAB}}


def with_head(kind: str, seed: int) -> Any:
    model = tiny(kind, **{"vocab_size": VOCAB, **OPTIONS.get(kind, {})})
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.get_output_embeddings().parameters():
            parameter.normal_()
    return model


def distillation_trainer(folder: Path, student: Any, teacher: Any, beta: float) -> Any:
    import trl

    tokenizer().save_pretrained(folder)
    args = arguments(
        trl.DistillationConfig, folder, max_steps=1, max_completion_length=6, beta=beta
    )
    with quiet():
        return trl.DistillationTrainer(
            model=student, teacher_model=teacher, args=args, train_dataset=prompts(8),
            processing_class=tokenizer(),
        )  # fmt: skip


def of_logits(model: Any, made: dict[str, Any]) -> Tensor:  # [B, T, V]
    ids, mask = (
        torch.cat((made[f"prompt_{x}"], made[f"completion_{x}"]), dim=1) for x in ("ids", "mask")
    )
    logits = model(input_ids=ids, attention_mask=mask).logits[:, PROMPT - 1 : -1]
    found: Tensor = logits.double().log_softmax(-1)
    return found
