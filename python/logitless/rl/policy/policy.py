"""The policy: any Hugging Face causal LM, seen as hidden states and a head that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import logitless as ll
from logitless.integrations.transformers.gguf import gguf_in, load_gguf, smollm2
from logitless.rl.policy.tokenizers import make_tokenizer, text_of
from logitless.rl.recipe import ModelRecipe

# Head rows of a model from scratch are padded to this, as models are.
VOCAB_MULTIPLE = 128
# model.path of the chat model that pip has, where no folder has that name.
SMOLLM2_PATH = "smollm2"


@dataclass(frozen=True)
class Policy:
    """A model, its tokenizer and its head."""

    model: Any
    tokenizer: Any
    head: ll.Head
    # Added to the logits: -inf for tokens that are never drawn, 0 for the others; None: all are.
    padding: Tensor | None = None  # [V]

    @property
    def body(self) -> Any:
        return self.model.base_model

    @property
    def weight(self) -> Tensor:  # [V, H]
        return self.head.weight

    @property
    def head_parameter(self) -> Tensor:
        """What is trained of the head: all rows of `weight`, and those that make no logit."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    @property
    def head_options(self) -> dict[str, Any]:
        """Keyword arguments of the linear_* functions."""
        options = self.head.options
        if self.padding is None:
            return options
        bias = options["bias"]
        return options | {"bias": self.padding if bias is None else bias + self.padding}

    @property
    def embedding(self) -> Tensor:  # [V, H]
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    @property
    def tied(self) -> bool:
        return self.embedding is self.head_parameter

    @property
    def eos(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def ends(self) -> list[int]:
        """The tokens that end an answer: the tokenizer's, and those of the generation config."""
        config = getattr(self.model, "generation_config", None)
        more = getattr(config, "eos_token_id", None)
        more = [] if more is None else [more] if isinstance(more, int) else list(more)
        return sorted({self.eos, *more})

    @property
    def pad(self) -> int:
        pad = self.tokenizer.pad_token_id
        return self.eos if pad is None else int(pad)

    def encode(self, prompts: Sequence[Any], chat_template: bool = False) -> list[list[int]]:
        """Token ids of prompts: texts as they are, or as a user's turn in the chat template;
        messages in the template always."""
        ids: list[list[int]]
        if not chat_template and all(isinstance(prompt, str) for prompt in prompts):
            ids = self.tokenizer(list(prompts), add_special_tokens=False).input_ids
            return ids
        return [self._ids(prompt, chat_template) for prompt in prompts]

    def _ids(self, prompt: Any, chat_template: bool) -> list[int]:
        if isinstance(prompt, str) and not chat_template:
            return self.encode([prompt])[0]
        chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if self.tokenizer.chat_template is None:
            raise ValueError("messages need a tokenizer with a chat template, got none")
        ids: list[int] = self.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_dict=False
        )
        return ids

    def text_of(self, ids: list[int]) -> str:
        """With special tokens."""
        return text_of(ids, self.tokenizer, special_tokens=True)

    def states(
        self,
        ids: Tensor,  # [B, t]: the last t tokens
        attention: Tensor,  # [B, T] bool: all of them
        cache: Any = None,
    ) -> Tensor:  # [B, t, H]
        """The states that the head reads; `cache`, a Hugging Face cache, has the earlier tokens."""
        positions = (attention.long().cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        return self.head.hidden(
            self.model,
            input_ids=ids,
            attention_mask=attention.long(),
            position_ids=positions,
            use_cache=cache is not None,
            **{_cache_argument(self.model): cache},
        )

    def save(self, folder: Path) -> None:
        """A folder that `AutoModelForCausalLM.from_pretrained` and `load_policy` read."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def load_weights(self, folder: Path) -> None:
        """Copies the weights that `save` wrote, bit for bit."""
        self.model.load_state_dict(load_policy(folder).model.state_dict())


def make_policy(recipe: ModelRecipe, seed: int) -> Policy:
    """The recipe's model: read from `path`, or made from scratch with `seed`."""
    if recipe.path == SMOLLM2_PATH and not Path(SMOLLM2_PATH).exists():
        return as_policy(*smollm2(), recipe.draw_padding)
    if recipe.path is not None:
        return load_policy(recipe.path, recipe.draw_padding)
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(recipe.tokenizer)
    rows = recipe.vocab_size or -(-len(tokenizer) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    if rows < len(tokenizer):
        raise ValueError(
            f"model.vocab_size must be at least the tokenizer's {len(tokenizer)}, got {rows}"
        )
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=recipe.max_positions,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    return as_policy(LlamaForCausalLM(config), tokenizer, recipe.draw_padding)


def load_policy(folder: str | Path, draw_padding: bool = False) -> Policy:
    """A causal LM and its tokenizer in fp32 from a folder, a GGUF file or a hub name.
    FileNotFoundError where there is none."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = gguf_in(folder)
    if file is not None:
        return as_policy(*load_gguf(file), draw_padding)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError) as error:
        why = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"no model can be read from {folder}: {why}") from error
    return as_policy(model, tokenizer, draw_padding)


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
    known = torch.zeros(max(head.vocab, 1 + max(ids)))
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
    cut = head._replace(weight=head.weight[:last], bias=bias, vocab=last)
    return replace(policy, head=cut)


def silence_bars() -> None:
    """Ends transformers' bars for each file it reads or writes, which would tear the live line."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _cache_argument(model: Any) -> str:
    """transformers 5.24 renamed it, model by model."""
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
