"""Random models, most with little beside their head, a tokenizer with a word for each entry, models
from a folder, prompts and a reward."""

from __future__ import annotations

from typing import Any

import torch

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"


def toy_model(vocab: int, hidden: int, *, layers: int = 1, tied: bool = False) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    heads = max(hidden // 64, 1)
    config = Qwen2Config(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=hidden, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads,
        tie_word_embeddings=tied, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def random_qwen(vocab: int) -> Any:
    """Random weights in the shape of Qwen2.5-0.5B."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocab, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
        num_attention_heads=14, num_key_value_heads=2,
        tie_word_embeddings=True, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def saved_model(folder: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder, padding_side="left")


def toy_tokenizer(vocab: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [PAD, EOS, UNKNOWN, *(f"w{i}" for i in range(3, vocab))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN, padding_side="left"
    )


def toy_prompts(number: int, words: int) -> list[str]:
    return [" ".join(f"w{3 + i * words + j}" for j in range(words)) for i in range(number)]


def reward(text: str) -> float:
    """The share of words that end with an even character: no two answers are alike to it."""
    words = text.split()
    return sum(ord(word[-1]) % 2 == 0 for word in words) / max(len(words), 1)
