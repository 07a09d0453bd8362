"""Tiny models, a tokenizer of their own, and trainers of TRL's over them: nothing from a hub."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("trl.trainer", reason="TRL is not installed: ./dev plugins has it")
    import datasets
    import transformers
    import trl

from logitless.integrations.trl import GRPOTrainer, install
from tests.plugins.tiny_model import tiny_model

VOCAB = 211
PROMPT, LENGTH = 5, 9


class Run(NamedTuple):
    """What one micro-batch gave: its loss, gradients by name, metrics by name."""

    loss: float
    gradients: dict[str, Tensor]
    metrics: dict[str, list[float]]


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(VOCAB - 3))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def save_model(folder: Path, kind: str = "Qwen2", *, spread: float = 0.5, **options: Any) -> Path:
    """A random model in a folder, with its tokenizer."""
    tiny_model(kind, spread, **{"vocab_size": VOCAB, **options}).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def plain_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def prompts(number: int = 64) -> Any:
    texts = [f"w{i % 50} w{(7 * i) % 60} w{(3 * i) % 40}" for i in range(number)]
    return datasets.Dataset.from_dict({"prompt": texts})


def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """The share of even ids, which a policy can learn."""
    return [sum(i % 2 == 0 for i in ids) / max(len(ids), 1) for ids in completion_ids]


def arguments(kind: Any, folder: Path, **options: Any) -> Any:
    fixed: dict[str, Any] = {
        "output_dir": str(folder / "out"), "per_device_train_batch_size": 4, "report_to": "none",
        "bf16": False, "gradient_checkpointing": False, "logging_steps": 1, "use_cpu": True,
        "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip
    return kind(**{**fixed, **options})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def grpo(
    way: str,  # "trl", "head" (theirs after install()) or "loss" (ours)
    folder: Path,
    *,
    model: Any = None,
    dtype: torch.dtype = torch.float32,
    trainer_options: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    defaults = {"num_generations": 4, "max_completion_length": LENGTH, "disable_dropout": True}
    args = arguments(trl.GRPOConfig, folder, **{**defaults, **options})
    if model is None:
        model = plain_model(folder, dtype)
    kind = GRPOTrainer if way == "loss" else trl.GRPOTrainer
    with quiet(), install() if way == "head" else contextlib.nullcontext():
        trainer = kind(
            model=model, reward_funcs=reward, args=args, train_dataset=prompts(),
            processing_class=tokenizer(), **(trainer_options or {}),
        )  # fmt: skip
    trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps
    return trainer


def generation(
    model: Any,
    rows: int = 4,
    *,
    seed: int = 1,
    old: float | None = 0.3,
    ref: bool = False,
    cut: tuple[int, ...] = (9, 6, 3, 8),
    temperature: float = 1.0,
) -> dict[str, Any]:
    """What TRL generates and scores, made up: off policy by noise, prompts of unequal length.

    cut: valid tokens of each completion; 0 is one that was truncated and masked.
    """
    g = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    prompt_ids = torch.randint(3, VOCAB, (rows, PROMPT), generator=g)
    completion_ids = torch.randint(3, VOCAB, (rows, LENGTH), generator=g)
    lengths = torch.tensor([cut[i % len(cut)] for i in range(rows)])
    starts = torch.arange(rows)[:, None] % 3
    made: dict[str, Any] = {
        "prompt_ids": prompt_ids,
        "prompt_mask": (torch.arange(PROMPT) >= starts).long(),
        "completion_ids": completion_ids,
        "completion_mask": (torch.arange(LENGTH) < lengths[:, None]).long(),
        "advantages": noise(rows),
    }
    made["num_items_in_batch"] = made["completion_mask"].sum()
    now = plain_logp(model, made, temperature)
    if old is not None:
        made["old_per_token_logps"] = now + old * noise(rows, LENGTH)
    if ref:
        made["ref_per_token_logps"] = now + 0.3 * noise(rows, LENGTH)
    return made


@torch.no_grad()
def plain_logp(model: Any, made: dict[str, Any], temperature: float = 1.0) -> Tensor:  # [B, T]
    ids, mask = (
        torch.cat((made[f"prompt_{x}"], made[f"completion_{x}"]), dim=1) for x in ("ids", "mask")
    )
    logits = model(input_ids=ids, attention_mask=mask).logits[:, PROMPT - 1 : -1].float()
    logp = (logits / temperature).log_softmax(-1)
    return logp.gather(-1, made["completion_ids"][..., None])[..., 0]


def run(trainer: Any, made: dict[str, Any]) -> Run:
    """One micro-batch through the trainer's own loss."""
    trainer.model.train()
    trainer.model.zero_grad()
    trainer._metrics["train"].clear()
    # Nothing is generated: this is all of it.
    trainer._generate_and_score_completions = lambda _: made
    # TRL shuffles what it generated.
    torch.manual_seed(0)
    with quiet():
        inputs = trainer._prepare_inputs([])
        loss = trainer._compute_loss(trainer.model, inputs)
        trainer.accelerator.backward(loss)
    gradients = {
        name.replace("_orig_mod.", ""): parameter.grad.clone()
        for name, parameter in trainer.model.named_parameters()
        if parameter.grad is not None
    }
    return Run(loss.item(), gradients, {k: list(v) for k, v in trainer._metrics["train"].items()})


def distance(a: Run, b: Run) -> float:
    """The largest difference of a gradient to the largest gradient, over parameters."""
    assert a.gradients.keys() == b.gradients.keys() and a.gradients
    worst = 0.0
    for name, x in a.gradients.items():
        size = x.abs().max().item()
        off = (x - b.gradients[name]).abs().max().item()
        worst = max(worst, off / size if size else off)
    return worst


def differences(a: Run, b: Run) -> dict[str, float]:
    """Of the loss, of gradients, and of the metrics that both have."""
    both = a.metrics.keys() & b.metrics.keys()
    apart = [
        abs(x - y)
        for name in both
        for x, y in zip(a.metrics[name], b.metrics[name], strict=True)
        if not (x != x and y != y)
    ]
    return {
        "loss": abs(a.loss - b.loss),
        "gradient": distance(a, b),
        "metrics": max(apart, default=0.0),
    }
