"""What one step of a trainer is asked to do, and the least that it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.trainers.models import (
    random_qwen,
    saved_model,
    toy_model,
    toy_prompts,
    toy_tokenizer,
)

SMOLLM2, QWEN = "smollm2", "qwen2.5-0.5b"
TOY_LAYERS, TOY_WORDS = 2, 16
# The sums that the demo asks for.
SMALLEST_SUM = 10
# None of their answers ends within a few dozen tokens.
QUESTIONS = (
    "Write a short story about a lighthouse keeper.",
    "Explain why the sky is blue to a child.",
    "What are the pros and cons of living in a city?",
    "Give me a recipe for pancakes.",
    "Describe how bread is made, step by step.",
    "Write a letter to a friend about a journey.",
    "Explain how a bicycle stays upright.",
    "Tell me about the history of the piano.",
)


class Workload(NamedTuple):
    # "smollm2", "qwen2.5-0.5b" with random weights, the width of a toy, or a folder of the demo's
    model: str
    vocab: int  # of the random models
    prompts: int
    group: int
    length: int
    minibatches: int
    steps: int  # measured, after one that warms up
    device: str = "cpu"

    @property
    def answers(self) -> int:
        return self.prompts * self.group

    @property
    def is_chat(self) -> bool:
        return self.model == SMOLLM2

    @property
    def is_folder(self) -> bool:
        return Path(self.model).is_dir()

    def texts(self) -> list[str]:
        if self.is_folder:
            return [f"sum {SMALLEST_SUM + i}:" for i in range(self.prompts)]
        if not self.is_chat:
            return toy_prompts(self.prompts, TOY_WORDS)
        if self.prompts > len(QUESTIONS):
            raise ValueError(f"--prompts must be at most {len(QUESTIONS)}, got {self.prompts}")
        return list(QUESTIONS[: self.prompts])

    def make(self) -> tuple[Any, Any]:
        """The model in float32, on the device, and its tokenizer."""
        model, tokenizer = self._made()
        return model.to(self.device), tokenizer

    def _made(self) -> tuple[Any, Any]:
        if self.is_chat:
            from logitless.integrations.transformers.gguf import smollm2

            return smollm2()
        if self.is_folder:
            return saved_model(self.model)
        if self.model == QWEN:
            return random_qwen(self.vocab), toy_tokenizer(self.vocab)
        model = toy_model(self.vocab, int(self.model), layers=TOY_LAYERS, tied=True)
        return model, toy_tokenizer(self.vocab)


class Shape(NamedTuple):
    """What a step was, as a trainer found it."""

    body: int  # parameters, without the embedding
    head: int  # V * H
    vocab: int  # V
    prompt_tokens: int  # of all different prompts
    tokens: int  # generated
    embedding: int = 0  # parameters, where it is not the head


def shape_of(model: Any, prompt_tokens: int, tokens: int) -> Shape:
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    own = 0 if embedding is head else embedding.numel()
    body = sum(p.numel() for p in model.parameters()) - head.numel() - own
    return Shape(body, head.numel(), len(head), prompt_tokens, tokens, own)


def parameters(shape: Shape) -> int:
    return shape.body + shape.head + shape.embedding


def resident(shape: Shape) -> int:
    """Bytes of weights, gradients and AdamW's two moments, which every trainer holds."""
    return 16 * parameters(shape)


def flops(shape: Shape, work: Workload) -> dict[str, float]:
    """Of products with weights. Prompts are read once; the log-probs of drawn tokens come with the
    draw."""
    seen = work.group * shape.prompt_tokens + shape.tokens
    return {
        "generation body": 2.0 * shape.body * (shape.prompt_tokens + shape.tokens),
        "generation head": 2.0 * shape.head * shape.tokens,
        "update body": 6.0 * shape.body * seen,
        "update head": 6.0 * shape.head * shape.tokens,
    }


def moved(shape: Shape, work: Workload) -> dict[str, int]:
    """Bytes of weights, gradients and AdamW's state in float32."""
    weights = 4 * (shape.body + shape.head)
    return {
        # once for the prompts, once for each place but the last
        "generation": work.length * weights,
        # read forward and backward, gradients written
        "update": work.minibatches * 3 * weights,
        # weights, gradients and two moments are read; all but the gradients are written
        "optimizer": work.minibatches * 7 * 4 * parameters(shape),
    }
