"""A bundled reward of steps: those that a language model and its reference imply."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import logitless as ll
from logitless.rl.model_pair import ModelPair
from logitless.rl.tasks.base import Text
from logitless.rl.tasks.bundled.option_checks import above_0, at_least_1, one_of
from logitless.rl.tasks.stepwise import Step

# Of each token its place in a text, from one character up to another.
Spans = Sequence[tuple[int, int]]
# From a text and its tokens to the places where steps end, rising; the text's end is one always.
PLACES: Mapping[str, Callable[[str, Spans], list[int]]] = {
    "line": lambda text, spans: [found.end() for found in re.finditer("\n", text)],
    "answer": lambda text, spans: [],
    "token": lambda text, spans: sorted({end for _, end in spans}),
}


@dataclass
class ImplicitPrm:
    """Of each step beta * (log p_model - log p_reference), summed over its tokens: the rewards of
    an implicit process reward model (arXiv:2412.01981, arXiv:2502.01456), by
    `ll.preference.implicit_rewards`. They add up to that of the whole answer.

    model, reference: folders or GGUF files, or smollm2. Both are read when the function is made, in
    float32, and stay as they are. An answer is its text: an end token counts where
    `task.special_tokens` makes it part of that.

    by: where steps end: with each "line", each "token", or the "answer" alone. A token that goes on
    behind a step's end belongs to the step; a step without a token of its own is one with the
    step before it. chat_template, system_prompt: as `rollout` has them, by the model's template.
    micro_tokens: what goes through a model at once, padding included. device: of both; in a recipe
    the policy's, unless it names another.
    """

    model: str
    reference: str
    beta: float = 0.05
    by: str = "line"
    chat_template: bool = False
    system_prompt: str | None = None
    micro_tokens: int = 4096
    device: str = "cpu"
    _pair: ModelPair = field(init=False, repr=False)

    def __post_init__(self) -> None:
        above_0("beta", self.beta)
        one_of("by", self.by, tuple(PLACES))
        at_least_1("micro_tokens", self.micro_tokens)
        if self.system_prompt is not None and not self.chat_template:
            raise ValueError(
                f"system_prompt needs chat_template=true, got {self.system_prompt!r} without"
            )
        self._check_device()
        template = {"chat_template": self.chat_template, "system": self.system_prompt}
        self._pair = ModelPair(self.model, self.reference, self.device, template, self.micro_tokens)

    def _check_device(self) -> None:
        try:
            torch.empty(0, device=self.device)
        # torch without CUDA asserts that it is there
        except (RuntimeError, AssertionError) as error:
            why = str(error).partition("\n")[0]
            raise ValueError(
                f"device must be one that torch has here, got {self.device!r}: {why}"
            ) from None

    def __call__(
        self, prompts: Sequence[Text], completions: Sequence[str], rows: Sequence[Any]
    ) -> list[list[Step]]:
        read = self._pair.read(prompts, completions)
        steps = [
            ends_of(text, spans, self.by)
            for text, spans in zip(completions, read.spans, strict=True)
        ]
        ends = torch.zeros_like(read.mask)
        for i, of_answer in enumerate(steps):
            ends[i, [tokens - 1 for _, tokens in of_answer if tokens]] = True
        found = ll.preference.implicit_rewards(
            read.logp, read.ref_logp, ends, read.mask, beta=self.beta
        ).tolist()
        return [
            [(place, row[tokens - 1] if tokens else 0.0) for place, tokens in of_answer]
            for of_answer, row in zip(steps, found, strict=True)
        ]


def ends_of(text: str, spans: Spans, by: str) -> list[tuple[int, int]]:
    """Of each step its end in the text, and how many tokens it takes to get there; of a text
    without a token (0, 0) or alike."""
    starts = [start for start, _ in spans]
    # of two places within one token the later one stays
    found = {
        bisect_left(starts, place): place for place in PLACES[by](text, spans) if place < len(text)
    }
    found[len(spans)] = len(text)
    if spans:
        found.pop(0, None)
    return [(place, tokens) for tokens, place in found.items()]
