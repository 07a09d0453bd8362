"""A small causal LM trained from scratch on the documentation of installed packages.

Nothing of that text is kept: tokens live in memory and only numbers leave this file.
"""

from __future__ import annotations

import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import logitless as ll

SUFFIXES = (".md", ".rst", ".txt", ".py")
LENGTH, BATCH = 128, 8
# Every so many files one is held out.
HELD_OUT = 20


def texts() -> Iterator[str]:
    """Documentation files of installed packages, docstrings of the standard library."""
    paths = {name: Path(sysconfig.get_path(name)) for name in ("purelib", "stdlib")}
    files = sorted(paths["purelib"].rglob("*.*")) + sorted(paths["stdlib"].glob("*.py"))
    for path in files:
        is_code = path.suffix == ".py"
        if path.suffix not in SUFFIXES or (is_code and paths["purelib"] in path.parents):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        yield docstrings(text) if is_code else text


def docstrings(source: str) -> str:
    import ast

    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return "\n\n".join(text for text in found if text)


def corpus(tokenizer: Any, limit: int) -> tuple[Tensor, Tensor]:
    """[sequences, LENGTH + 1] token ids of at most `limit` tokens to train on, and others."""
    parts: tuple[list[int], list[int]] = ([], [])
    for number, text in enumerate(texts()):
        ids = tokenizer(text[:40_000], add_special_tokens=False).input_ids
        parts[number % HELD_OUT == 0].extend([*ids, tokenizer.eos_token_id])
        if len(parts[0]) >= limit:
            break

    def cut(ids: list[int]) -> Tensor:
        n = len(ids) // (LENGTH + 1)
        return torch.tensor(ids[: n * (LENGTH + 1)]).view(n, LENGTH + 1)

    return cut(parts[0]), cut(parts[1])


def make_model(vocab: int, hidden: int, layers: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=4 * hidden,
        num_hidden_layers=layers, num_attention_heads=4, max_position_embeddings=2 * LENGTH,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def states(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states [N, H] and the tokens they predict [N]."""
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    return hidden.flatten(0, 1), ids[:, 1:].flatten()


def training(
    model: Any, ids: Tensor, steps: int, lr: float
) -> Iterator[tuple[int, float | None, float]]:
    """Yields (steps done, loss, seconds of training) after each step, and before the first."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    spent = 0.0
    yield 0, None, 0.0
    for step in range(1, steps + 1):
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, step / 20, 0.05 + 1.2 * (1 - step / steps))
        batch = ids[torch.randint(len(ids), (BATCH,), generator=generator)]
        hidden, targets = states(model, batch)
        # The products of the head in bfloat16, as one trains.
        with torch.autocast("cpu", torch.bfloat16):
            stats = ll.linear_token_stats(hidden, model.lm_head.weight, targets)
        loss = -stats.logp.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        spent += time.perf_counter() - began
        yield step, float(loss.detach()), spent
