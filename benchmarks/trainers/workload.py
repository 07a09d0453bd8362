"""What one step of a trainer is asked to do, and the least that it takes."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.trainers.models import toy_model, toy_prompts, toy_tokenizer

SMOLLM2 = "smollm2"
TOY_LAYERS, TOY_WORDS = 2, 16
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
    model: str  # "smollm2", or the width of a toy
    vocab: int  # of a toy
    prompts: int
    group: int
    length: int
    minibatches: int
    steps: int  # measured, after one that warms up

    @property
    def answers(self) -> int:
        return self.prompts * self.group

    @property
    def is_chat(self) -> bool:
        return self.model == SMOLLM2

    def texts(self) -> list[str]:
        if not self.is_chat:
            return toy_prompts(self.prompts, TOY_WORDS)
        if self.prompts > len(QUESTIONS):
            raise ValueError(f"--prompts must be at most {len(QUESTIONS)}, got {self.prompts}")
        return list(QUESTIONS[: self.prompts])

    def make(self) -> tuple[Any, Any]:
        """The model in float32 and its tokenizer."""
        if self.is_chat:
            from logitless.integrations.transformers.gguf import smollm2

            return smollm2()
        model = toy_model(self.vocab, int(self.model), layers=TOY_LAYERS, tied=True)
        return model, toy_tokenizer(self.vocab)


class Shape(NamedTuple):
    """What a step was, as a trainer found it."""

    body: int  # parameters, without the embedding
    head: int  # V * H, tied
    prompt_tokens: int  # of all different prompts
    tokens: int  # generated


def shape_of(model: Any, prompt_tokens: int, tokens: int) -> Shape:
    head = model.get_output_embeddings().weight
    parameters = sum(p.numel() for p in model.parameters())
    return Shape(parameters - head.numel(), head.numel(), prompt_tokens, tokens)


def resident(shape: Shape) -> int:
    """Bytes of weights, gradients and AdamW's two moments, which every trainer holds."""
    return 16 * (shape.body + shape.head)


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
        "optimizer": work.minibatches * 7 * weights,
    }
