"""The policy: any Hugging Face causal LM, seen as hidden states and a head that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import logitless as ll
from logitless.rl.policy import lora as adapters
from logitless.rl.policy.caches import is_recurrent, new_cache
from logitless.rl.policy.models import WEIGHTS, read_model, tensors_as_saved
from logitless.rl.policy.tokenizers import begin_of_text, begun, text_of
from logitless.rl.tracking import files


@dataclass(frozen=True)
class Policy:
    """A model, its tokenizer and its head."""

    model: Any
    tokenizer: Any
    head: ll.Head
    # Added to the logits: -inf for tokens that are never drawn, 0 for the others; None: all are.
    padding: Tensor | None = None  # [V]
    # peft's LoraConfig, where adapters are trained and nothing else is.
    lora: Any = None
    # What the body computes in; the head reads float32.
    body_dtype: torch.dtype = torch.float32
    # Whether the body reads a prompt once for all its answers, in training.
    share_prompts: bool = False

    def in_dtype(self, name: str) -> Policy:
        """The same policy, whose body computes in that dtype."""
        return replace(self, body_dtype=getattr(torch, name))

    @property
    def body(self) -> Any:
        return self.model.base_model

    @property
    def device(self) -> torch.device:
        return self.weight.device

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

    @property
    def positions(self) -> int | None:
        """Tokens of a sequence that the model is made for; None: its configuration has no limit."""
        known = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return known if isinstance(known, int) and known > 0 else None

    def check_length(self, prompts: Sequence[Sequence[int]], answer: int) -> None:
        """ValueError where a prompt with an answer of so many tokens has more than `positions`."""
        longest = max(map(len, prompts), default=0)
        if self.positions is not None and longest + answer > self.positions:
            raise ValueError(
                f"a prompt of {longest} tokens with an answer of up to {answer} must have at most "
                f"the model's {self.positions} positions, got {longest + answer}"
            )

    def encode(
        self, prompts: Sequence[Any], chat_template: bool = False, system: str | None = None
    ) -> list[list[int]]:
        """Token ids of prompts: texts behind what the tokenizer itself puts before one (BOS), or
        as a user's turn in the chat template, after the system's if there is one; messages in the
        template always, which says itself how it begins. ValueError where a prompt has no token."""
        if not chat_template and all(isinstance(prompt, str) for prompt in prompts):
            begin = begin_of_text(self.tokenizer)
            ids = [begun(row, begin) for row in self.encode_answers(prompts)]
        else:
            ids = [self._ids(prompt, chat_template, system) for prompt in prompts]
        for prompt, row in zip(prompts, ids, strict=True):
            if not row:
                raise ValueError(
                    f"a prompt must have at least one token, got {prompt!r}, of which the "
                    "tokenizer makes none"
                )
        return ids

    def encode_answers(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts that go on with a prompt: nothing stands before them."""
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False).input_ids
        return ids

    def answer_spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Of each token of `encode_answers` where it stands in its text: from one place up to
        another. Needs a fast tokenizer."""
        spans: list[list[tuple[int, int]]] = self.tokenizer(
            list(texts), add_special_tokens=False, return_offsets_mapping=True
        ).offset_mapping
        return spans

    def _ids(self, prompt: Any, chat_template: bool, system: str | None) -> list[int]:
        if isinstance(prompt, str) and not chat_template:
            return self.encode([prompt])[0]
        chat = turns(prompt, system) if isinstance(prompt, str) else prompt
        if self.tokenizer.chat_template is None:
            raise ValueError("messages need a tokenizer with a chat template, got none")
        try:
            ids: list[int] = self.tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, return_dict=False
            )
        # a template refuses what it has no place for, such as a system's turn, in its own way
        except Exception as error:
            roles = ", ".join(turn["role"] for turn in chat)
            raise ValueError(
                f"the tokenizer's chat template refuses messages of {roles}: {error}"
            ) from error
        return ids

    def text_of(self, ids: list[int]) -> str:
        """With special tokens."""
        return text_of(ids, self.tokenizer, special_tokens=True)

    def new_cache(self) -> Any:
        """An empty one, for `states`."""
        return new_cache(self.model)

    def states(
        self,
        ids: Tensor,  # [B, t]: the last t tokens
        attention: Tensor,  # [B, T] bool: all of them
        cache: Any = None,
    ) -> Tensor:  # [B, t, H]
        """The states that the head reads; `cache`, a Hugging Face cache, has the earlier tokens."""
        positions = (attention.long().cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if cache is not None and is_recurrent(cache):
            # no layer sees the earlier tokens, and some would multiply by their mask
            attention = attention[:, -ids.shape[1] :]
        return self._states(ids, attention.long(), positions, cache)

    def states_seeing(
        self,
        ids: Tensor,  # [B, t]
        sees: Tensor,  # [B, t, t] bool: whether a token (the first t) sees another one
        positions: Tensor,  # [B, t]
    ) -> Tensor:  # [B, t, H]
        """The states that the head reads, where each token sees some of the row's tokens.
        ValueError where the model's attention takes no such mask."""
        kind = self.model.config._attn_implementation
        if kind != "sdpa":
            raise ValueError(
                "recipe key 'model.share_prompts' needs a model with the attention 'sdpa', got "
                f"{kind!r}"
            )
        return self._states(ids, sees[:, None], positions, None)

    def _states(self, ids: Tensor, attention: Tensor, positions: Tensor, cache: Any) -> Tensor:
        kind, cast = ids.device.type, self.body_dtype != torch.float32
        with torch.autocast(kind, self.body_dtype) if cast else nullcontext():
            states = self.head.hidden(
                self.model,
                input_ids=ids,
                attention_mask=attention,
                position_ids=positions,
                use_cache=cache is not None,
                **{_cache_argument(self.model): cache},
            )
        return states.float() if cast else states

    @property
    def parts(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """What can be trained of the body, of the head, and of an embedding that is not the
        head's."""
        if self.lora is not None:
            of_head = {id(p) for p in self.model.get_output_embeddings().parameters()}
            found = list(adapters.adapters(self.model).values())
            head = [p for p in found if id(p) in of_head]
            return [p for p in found if id(p) not in of_head], head, []
        apart = {id(self.head_parameter), id(self.embedding)}
        body = [p for p in self.model.parameters() if id(p) not in apart]
        return body, [self.head_parameter], [] if self.tied else [self.embedding]

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of all that training can change, for `restore`."""
        state = self.model.state_dict() if self.lora is None else adapters.adapters(self.model)
        return {name: value.detach().clone() for name, value in state.items()}

    def restore(self, weights: dict[str, Tensor]) -> None:
        self.model.load_state_dict(weights, strict=self.lora is None)

    def save(self, folder: Path) -> None:
        """A folder that `load_policy` reads: one for `AutoModelForCausalLM.from_pretrained`, or one
        of adapters alone, for `PeftModel.from_pretrained`."""
        self.save_weights(folder)
        self.save_tokenizer(folder)

    def save_tokenizer(self, folder: Path) -> None:
        with files.writing(folder):
            self.tokenizer.save_pretrained(folder)

    def save_weights(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """That folder without the tokenizer. weights: None: the model's own; {}: another writes
        them. NotWritten names the folder and their bytes."""
        with files.writing(folder, self._bytes_of(weights)):
            if self.lora is None:
                self.model.save_pretrained(folder, state_dict=weights)
            else:
                adapters.save(self.model, self.lora, folder, weights)

    def _bytes_of(self, weights: dict[str, Tensor] | None) -> int:
        if weights is None:
            named = dict(self.model.named_parameters())
            weights = named if self.lora is None else adapters.adapters(self.model)
        return sum(x.numel() * x.element_size() for x in weights.values())

    @property
    def saved_as(self) -> str:
        """The file of the weights in that folder, without its suffix."""
        return WEIGHTS if self.lora is None else adapters.WEIGHTS

    def weights_as_saved(self) -> dict[str, Tensor] | None:
        """The weights themselves by their names in that file; None: it has others, of which
        transformers makes them."""
        return tensors_as_saved(self.model) if self.lora is None else adapters.as_saved(self.model)

    def load_weights(self, folder: Path) -> None:
        """Copies the weights that `save` wrote, bit for bit."""
        self.restore(self.read_weights(folder))

    def read_weights(self, folder: Path) -> dict[str, Tensor]:
        """Those that `save` wrote, for `restore`."""
        if self.lora is not None:
            return adapters.read(self.model, folder)
        weights: dict[str, Tensor] = read_model(folder)[0].state_dict()
        return weights


def turns(prompt: str, system: str | None) -> list[dict[str, str]]:
    user = {"role": "user", "content": prompt}
    return [user] if system is None else [{"role": "system", "content": system}, user]


def _cache_argument(model: Any) -> str:
    """transformers 5.24 renamed it, model by model."""
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
