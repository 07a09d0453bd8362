"""A language model beside its reference: log-probs of the same answers under both."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import logitless as ll
from logitless.rl.policy import Policy, load_policy
from logitless.rl.rollout import Cut, Rollout, given_answers, hidden_states, of_parts


class Read(NamedTuple):
    """B answers as both models read them, of up to T tokens, on the host."""

    # of each token where it stands in the answer's text: from one place up to another
    spans: list[list[tuple[int, int]]]
    mask: Tensor  # [B, T] bool: tokens
    logp: Tensor  # [B, T] fp64, nats; 0 where there is no token
    ref_logp: Tensor  # [B, T] fp64


class ModelPair:
    def __init__(
        self, model: str, reference: str, device: str, template: dict[str, Any], tokens: int
    ) -> None:
        """Both are read from what `load_policy` takes. template: arguments of `encode`; tokens:
        what goes through a body at once, padding included.

        FileNotFoundError where there is no model; ValueError for tokenizers that differ, or do not
        know where their tokens stand, and for a template that is missing.
        """
        self.model, self.reference = (
            load_policy(place, draw_padding=True, device=device) for place in (model, reference)
        )
        self.template, self.cut = template, Cut(tokens=tokens)
        vocabularies = [x.tokenizer.get_vocab() for x in (self.model, self.reference)]
        if vocabularies[0] != vocabularies[1]:
            raise ValueError(
                f"model and reference must have one tokenizer, got {model} and {reference}, whose "
                "vocabularies differ"
            )
        if not self.model.tokenizer.is_fast:
            raise ValueError(
                "the tokenizer must be a fast one, which knows where its tokens stand in a text, "
                f"got {type(self.model.tokenizer).__name__} of {model}"
            )
        self.model.encode(["a prompt"], **template)

    def read(self, prompts: Sequence[Any], texts: Sequence[str]) -> Read:
        """The answers as texts that go on with their prompts, by the model's tokenizer; nothing
        stands behind them, such as an end token. ValueError where one has more tokens than either
        model has positions."""
        before = self.model.encode(prompts, **self.template)
        answers = self.model.encode_answers(texts)
        for policy in (self.model, self.reference):
            for prompt, answer in zip(before, answers, strict=True):
                policy.check_length([prompt], len(answer))
        rollout = given_answers(before, answers, self.model.pad)
        logp, ref_logp = (
            log_probs(policy, rollout, self.cut) for policy in (self.model, self.reference)
        )
        return Read(self.model.answer_spans(texts), rollout.mask, logp, ref_logp)


@torch.no_grad()
def log_probs(policy: Policy, rollout: Rollout, cut: Cut) -> Tensor:  # [B, T] fp64
    """Of the answers' tokens, on the host; 0 where there is none."""
    none = torch.zeros(rollout.mask.shape, dtype=torch.float64, device="cpu")
    if not rollout.mask.any():
        return none
    logp = of_parts(policy, rollout.to(policy.device), cut, partial(of_tokens, policy))["logp"]
    return none.masked_scatter(rollout.mask, logp.double().cpu())


def of_tokens(policy: Policy, part: Rollout) -> dict[str, Tensor]:
    stats: Any = ll.linear_token_stats(
        hidden_states(policy, part), policy.weight, part.targets, **policy.head_options
    )
    return {"logp": stats.logp}
