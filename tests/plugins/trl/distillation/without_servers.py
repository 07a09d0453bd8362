"""TRL's AsyncDistillation in one process, on a CPU: rollouts that were made before."""

from __future__ import annotations

import queue
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitless.integrations.trl.distillation import asynchronous
from tests.plugins.trl.distillation.distillers import classes
from tests.plugins.trl.setting import VOCAB, arguments, prompts, tokenizer

STEPS = 3
# candidates of the teacher
TOP = 5


class Worker:
    """Rollouts that were made before."""

    def __init__(self, samples: list[Any]) -> None:
        self.rollout_buffer: queue.Queue[Any] = queue.Queue()
        self.metrics_queue: queue.Queue[Any] = queue.Queue()
        for sample in samples:
            self.rollout_buffer.put(sample)

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def update_model_version(self, model_version: int) -> None: ...
    def check_health(self, stale_after_s: float) -> None: ...


class NoTransfer:
    def init_weight_transfer(self) -> None: ...
    def pause(self) -> None: ...
    def send_weights(self, iterator: Any) -> None:
        for _ in iterator:
            pass

    def resume(self) -> None: ...
    def destroy(self) -> None: ...


class Eager:
    @staticmethod
    def from_pretrained(name: str, **options: Any) -> Any:
        import transformers

        options["attn_implementation"] = "eager"
        return transformers.AutoModelForCausalLM.from_pretrained(name, **options)


def samples(number: int) -> list[Any]:
    from trl.experimental.async_distillation.async_rollout_worker import RolloutSample

    made = []
    for i in range(number):
        rng = np.random.default_rng(i)
        length, prompt = 8 + i % 5, 3
        ids = rng.integers(3, VOCAB, length)
        mask = (np.arange(length) >= prompt).astype(np.int64)
        wide = np.full((length, TOP + 1), -1, dtype=np.int64)
        logp = np.full((length, TOP + 1), -np.inf, dtype=np.float32)
        for place in range(prompt, length):
            scores = rng.normal(size=VOCAB) * 2
            scores -= np.log(np.exp(scores).sum())
            best = np.argsort(-scores)[:TOP]
            if ids[place] not in best:
                best = np.append(best, ids[place])
            wide[place, : len(best)], logp[place, : len(best)] = best, scores[best]
        made.append(
            RolloutSample(
                prompt=[], completion=[], input_ids=ids, completion_mask=mask,
                teacher_topk_ids=wide, teacher_topk_logprobs=logp, model_version=0, metrics={},
                teacher_id="default", prompt_id=i,
            )
        )  # fmt: skip
    return made


def asynchronous_trainer(folder: Path, beta: float, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A trainer, which asks a GPU for its name, and for attention that a CPU has not."""
    kind, config = classes("async_distillation")
    module = sys.modules[asynchronous.MODULE]
    monkeypatch.setattr(module, "get_peak_flops_per_device", lambda *given: None)
    monkeypatch.setattr(module, "AutoModelForCausalLM", Eager)
    args = arguments(
        config, folder, max_steps=STEPS, beta=beta, teacher_top_k=TOP, learning_rate=2e-4,
        token_budget=0, max_staleness=100,
    )  # fmt: skip
    return kind(
        model=str(folder), args=args, train_dataset=prompts(32), processing_class=tokenizer(),
        rollout_worker=Worker(samples(32)), weight_transfer=NoTransfer(),
    )  # fmt: skip
