"""Policies: read, made, and made safe to draw from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import logitless as ll
from logitless.rl.policy import lora as adapters
from logitless.rl.policy.models import model_from_scratch, read_model
from logitless.rl.policy.policy import Policy
from logitless.rl.recipe import LoraRecipe, ModelRecipe


def make_policy(recipe: ModelRecipe, seed: int, lora: LoraRecipe | None = None) -> Policy:
    """The recipe's model: read from `path`, or made from scratch with `seed`; with new adapters
    where `lora` has a rank."""
    policy = _policy_of(recipe, seed, lora or LoraRecipe()).in_dtype(recipe.body_dtype)
    return replace(policy, share_prompts=recipe.share_prompts)


def _policy_of(recipe: ModelRecipe, seed: int, lora: LoraRecipe) -> Policy:
    if recipe.path is None:
        model, tokenizer = model_from_scratch(recipe, seed)
        return as_policy(model.to(recipe.device), tokenizer, recipe.draw_padding)
    if adapters.in_folder(recipe.path):
        raise ValueError(
            f"recipe key 'model.path' must be a whole model, got {recipe.path}, a folder of "
            "adapters: merge them into their model"
        )
    model, tokenizer = read_model(recipe.path)
    if not lora.rank:
        return as_policy(model.to(recipe.device), tokenizer, recipe.draw_padding)
    config = adapters.config_of(model, lora, recipe.path)
    return adapted(model, tokenizer, config, recipe.draw_padding, seed, recipe.device)


def load_policy(
    folder: str | Path, draw_padding: bool = False, device: torch.device | str = "cpu"
) -> Policy:
    """What `read_model` reads; a folder of adapters brings the model that they are for."""
    if not adapters.in_folder(folder):
        model, tokenizer = read_model(folder)
        return as_policy(model.to(device), tokenizer, draw_padding)
    config = adapters.read_config(folder)
    base = read_model(config.base_model_name_or_path)
    policy = adapted(*base, config, draw_padding, device=device)
    policy.load_weights(Path(folder))
    return policy


def adapted(
    model: Any,
    tokenizer: Any,
    config: Any,
    draw_padding: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Policy:
    """A policy of which new adapters are trained: on every device the same."""
    adapters.inject(model, config, seed)
    return replace(as_policy(model.to(device), tokenizer, draw_padding), lora=config)


def as_policy(model: Any, tokenizer: Any, draw_padding: bool = False) -> Policy:
    """draw_padding: whether tokens can be drawn that the head has and the tokenizer has not."""
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer must have an end-of-sequence token, got none")
    # Sampled and trained log-probs must come from the same function: no dropout, ever.
    policy = Policy(model.eval(), tokenizer, ll.head_of(model))
    return policy if draw_padding else without_padding(policy)


def without_padding(policy: Policy) -> Policy:
    """Tokens that the tokenizer does not have get probability 0, in rollouts and in training."""
    head, ids = policy.head, list(policy.tokenizer.get_vocab().values())
    known = torch.zeros(max(head.vocab, 1 + max(ids)), device=head.weight.device)
    known[ids] = 1
    padding = known[: head.vocab].log()
    if not padding.any():
        return policy
    if head.softcap is None:
        return replace(policy, padding=padding)
    # A softcap makes a finite logit of any bias: the rows go.
    last = int(padding.isfinite().nonzero()[-1]) + 1
    if padding[:last].any():
        raise NotImplementedError(
            "a head with a softcap has rows without a token in the midst of the others: "
            "set model.draw_padding=true"
        )
    bias = None if head.bias is None else head.bias[:last]
    lora = tuple((down, up[:last], scale) for down, up, scale in head.adapter)
    cut = head._replace(weight=head.weight[:last], bias=bias, vocab=last, adapter=lora)
    return replace(policy, head=cut)
