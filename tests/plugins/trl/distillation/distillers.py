"""TRL's experimental distillation trainers over tiny models, and micro-batches for their losses."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from logitless.integrations.trl import install
from tests.plugins.trl.setting import (
    LENGTH,
    PROMPT,
    VOCAB,
    Run,
    arguments,
    generation,
    plain_model,
    quiet,
    reward,
    tokenizer,
)

# Name of the module, and of trainer and config.
KINDS = {
    "gkd": "GKD", "gold": "GOLD", "iw_opd": "IWOPD", "sdft": "SDFT", "sdpo": "SDPO",
    "server_distillation": "ServerDistillation", "async_distillation": "AsyncDistillation",
}  # fmt: skip
WITH_TEACHER = ("gkd", "gold", "iw_opd")
SELF = ("sdft", "sdpo")
TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"

try:
    with quiet():
        importlib.import_module("trl.experimental.async_distillation")
except ModuleNotFoundError as error:
    if error.name != "aiohttp":
        raise
    # TRL 1.15 imports it with the trainer, whose rollout worker alone uses it.
    sys.modules["aiohttp"] = types.ModuleType("aiohttp")
    sys.modules["aiohttp"].__dict__.update(ClientError=OSError, ClientSession=object)


def chat_tokenizer(*, of_bytes: bool = False) -> Any:
    made = byte_tokenizer() if of_bytes else tokenizer()
    made.chat_template = TEMPLATE
    return made


def byte_tokenizer() -> Any:
    """As GOLD wants one: each byte of the text is a token."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    first = "w0123456789\u0120"
    rest = [c for c in sorted(pre_tokenizers.ByteLevel.alphabet()) if c not in first]
    words = ["<pad>", "<eos>", "<unk>", *first, *rest][:VOCAB]
    inner = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def chats(number: int = 32) -> Any:
    import datasets

    def chat(i: int) -> list[dict[str, str]]:
        asked = f"w{i % 50} w{(7 * i) % 60}"
        return [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": f"w{i % 9} w{i % 11} w{i % 13} w1"},
        ]

    return datasets.Dataset.from_list([{"messages": chat(i)} for i in range(number)])


def told(number: int = 32) -> Any:
    """Prompts, and what the teacher knows beside them."""
    import datasets

    rows = [
        {"prompt": f"w{i % 50} w{(7 * i) % 60}", "privileged_context": f"w{i % 9} w{i % 11}"}
        for i in range(number)
    ]
    return datasets.Dataset.from_list(rows)


def classes(kind: str) -> tuple[Any, Any]:
    with quiet():
        module = importlib.import_module(f"trl.experimental.{kind}")
    return getattr(module, f"{KINDS[kind]}Trainer"), getattr(module, f"{KINDS[kind]}Config")


def distiller(
    kind: str, folder: Path, teacher: Path, *, given: dict[str, Any] | None = None, **options: Any
) -> Any:
    """A trainer of one of KINDS but the servers'. given: to the trainer."""
    trainer, config = classes(kind)
    fixed: dict[str, Any] = {"max_length": 32}
    more: dict[str, Any] = {
        "train_dataset": chats(),
        "processing_class": chat_tokenizer(of_bytes=kind == "gold"),
    }
    if kind in WITH_TEACHER:
        more["teacher_model"] = plain_model(teacher)
        fixed["max_new_tokens" if kind == "gkd" else "max_completion_length"] = 6
    if kind in SELF:
        fixed = {"max_completion_length": 6, "num_generations": 2}
        more["train_dataset"] = told()
    if kind == "sdpo":
        more["reward_funcs"] = reward
    with quiet():
        args = arguments(config, folder, **{**fixed, **options})
        return trainer(model=plain_model(folder), args=args, **more, **(given or {}))


def labelled(seed: int = 3) -> dict[str, Tensor]:
    """Prompts to the left of answers of unequal length, as GKD and its like take them."""
    g = torch.Generator().manual_seed(seed)
    width = PROMPT + LENGTH
    ids = torch.randint(3, VOCAB, (4, width), generator=g)
    ends = torch.tensor([[width], [width - 2], [width - 5], [width - 1]])
    starts = torch.tensor([[PROMPT], [PROMPT - 1], [PROMPT], [PROMPT - 2]])
    places = torch.arange(width)
    mask = (places < ends).long()
    labels = ids.masked_fill((places < starts) | (places >= ends), -100)
    prompts = torch.ones(4, PROMPT, dtype=torch.long)
    return {
        "input_ids": ids * mask, "attention_mask": mask, "labels": labels,
        "prompts": ids[:, :PROMPT], "prompt_attention_mask": prompts,
    }  # fmt: skip


def completed(model: Any, *, privileged: int = 3, temperature: float = 1.0) -> dict[str, Any]:
    """Completions off policy, and prompts that say more to the teacher."""
    made = generation(model, old=0.3, temperature=temperature)
    g = torch.Generator().manual_seed(5)
    more = torch.randint(3, VOCAB, (len(made["prompt_ids"]), privileged), generator=g)
    prompts = torch.cat((made["prompt_ids"], more), dim=1)
    mask = torch.cat((made["prompt_mask"], torch.ones_like(more)), dim=1)
    return made | {
        "teacher_input_ids": torch.cat((prompts, made["completion_ids"]), dim=1),
        "teacher_attention_mask": torch.cat((mask, made["completion_mask"]), dim=1),
    }


def batch_of(kind: str, trainer: Any) -> dict[str, Any]:
    if kind in SELF:
        # the trainer's is in the middle of being trained
        return completed(trainer.accelerator.unwrap_model(trainer.model))
    return labelled()


def loss_of(trainer: Any, inputs: dict[str, Any], **options: Any) -> Run:
    """One micro-batch through the trainer's own loss."""
    trainer.model.train()
    trainer.model.zero_grad()
    trainer._metrics["train"].clear()
    trainer.current_gradient_accumulation_steps = 1
    with quiet():
        loss = trainer.compute_loss(trainer.model, inputs, **options)
        trainer.accelerator.backward(loss)
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in trainer.model.named_parameters()
        if parameter.grad is not None
    }
    return Run(loss.item(), gradients, {k: list(v) for k, v in trainer._metrics["train"].items()})


def same(make: Callable[[], Run]) -> None:
    """The loss and the gradients of what is not served are bit for bit those without."""
    theirs = make()
    with install():
        ours = make()
    assert ours.loss == theirs.loss and ours.metrics == theirs.metrics
    assert ours.gradients.keys() == theirs.gradients.keys() and theirs.gradients
    assert all(torch.equal(x, theirs.gradients[k]) for k, x in ours.gradients.items())
