"""A micro-batch of TRL's GRPO trainer, loss and backward: as it is, and with this library.

    ./dev bench trainers [--hidden 128 896] [--vocab 151936] [--tokens 512] [--repeats 7]

"head" is TRL's trainer made under `install()`, "loss" is this library's GRPOTrainer. The model is
one random layer: what is compared is the head and the loss. Times are interleaved; memory is the
growth of the process's peak over one micro-batch, in a process of its own, gradients of the head
included.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import warnings
from typing import Any

import torch

import logitless as ll
from benchmarks.harness.case import Call
from benchmarks.harness.machine_info import machine
from benchmarks.harness.peak_memory import growth
from benchmarks.harness.timing import Timer, interleave

WAYS = ("trl", "head", "loss")
ROWS, PROMPT = 8, 16


def make_model(vocab: int, hidden: int) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=hidden, num_hidden_layers=1,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64,
        tie_word_embeddings=False, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, "w": 2}
    inner = Tokenizer(models.WordLevel(words, unk_token="w"))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="w"
    )


def make_trainer(way: str, vocab: int, hidden: int, folder: str) -> Any:
    import trl
    from datasets import Dataset

    from logitless.integrations.trl import GRPOTrainer, install

    args = trl.GRPOConfig(
        output_dir=folder, per_device_train_batch_size=ROWS, num_generations=ROWS, bf16=False,
        gradient_checkpointing=False, report_to="none", use_cpu=True, disable_dropout=True,
    )  # fmt: skip
    kind = GRPOTrainer if way == "loss" else trl.GRPOTrainer
    with install() if way == "head" else contextlib.nullcontext():
        trainer = kind(
            model=make_model(vocab, hidden), args=args, processing_class=make_tokenizer(),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            train_dataset=Dataset.from_dict({"prompt": ["w"] * ROWS}),
        )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def make_inputs(tokens: int, vocab: int) -> dict[str, Any]:
    """Completions of equal length, near the policy that made them."""
    g = torch.Generator().manual_seed(1)
    length = tokens // ROWS
    shape = (ROWS, length)
    return {
        "prompt_ids": torch.randint(2, vocab, (ROWS, PROMPT), generator=g),
        "prompt_mask": torch.ones(ROWS, PROMPT, dtype=torch.int64),
        "completion_ids": torch.randint(2, vocab, shape, generator=g),
        "completion_mask": torch.ones(shape, dtype=torch.int64),
        "advantages": torch.randn(ROWS, generator=g),
        "num_items_in_batch": torch.tensor(ROWS * length),
        "old_per_token_logps": -torch.tensor(float(vocab)).log()
        + 0.1 * torch.randn(shape, generator=g),
    }


def micro_batch(way: str, tokens: int, vocab: int, hidden: int, folder: str) -> Call:
    trainer, inputs = make_trainer(way, vocab, hidden, folder), make_inputs(tokens, vocab)

    def run(_: None) -> float:
        loss = trainer._compute_loss(trainer.model, inputs)
        trainer.accelerator.backward(loss)
        return float(loss)

    return Call(run, prepare=lambda: trainer.model.zero_grad(set_to_none=True))


def memory_of(way: str, given: argparse.Namespace, hidden: int) -> int:
    command = [
        sys.executable, "-W", "ignore", "-m", "benchmarks.studies.trainers", "--memory-of", way,
        "--hidden", str(hidden), "--vocab", str(given.vocab), "--tokens", str(given.tokens),
    ]  # fmt: skip
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(found.stdout.split()[-1])


def row(given: argparse.Namespace, hidden: int, folder: str) -> list[str]:
    calls = {way: micro_batch(way, given.tokens, given.vocab, hidden, folder) for way in WAYS}
    losses = [call.run(call.prepare()) for call in calls.values()]
    assert max(losses) - min(losses) < 1e-4, losses
    times = interleave(calls, given.repeats, Timer("cpu"))
    peaks = {way: memory_of(way, given, hidden) for way in WAYS}
    return [
        f"| {hidden} | {way} | {times[way].median:.3f} | {times[way].over(times['trl']):.3f} "
        f"| {peaks[way] / 2**20:.0f} | {peaks[way] / peaks['trl']:.2f} |"
        for way in WAYS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 896])
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        if given.memory_of:
            (hidden,) = given.hidden
            call = micro_batch(given.memory_of, given.tokens, given.vocab, hidden, folder)
            print(growth(call, "cpu", ll.release_memory))
            return
        facts = machine("cpu", {"torch": torch.__version__})
        print(f"V = {given.vocab}, {given.tokens} tokens, float32, {facts}\n")
        print("| H | | seconds | of TRL's | MiB | of TRL's |\n|---|---|---|---|---|---|")
        for hidden in given.hidden:
            print("\n".join(row(given, hidden, folder)), flush=True)


if __name__ == "__main__":
    main()
