"""GRPO by TRL with Clip-Cov over the whole optimizer batch, on a tiny random model.

    pip install 'logitless[trl]'
    python examples/trl_grpo.py

Nothing is downloaded: the model is random, and its tokenizer counts words. The policy is rewarded
for even words, and learns to write them.
"""

from __future__ import annotations

import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig

from logitless.integrations.trl import GRPOTrainer

WORDS = ["<pad>", "<eos>", *(f"w{i}" for i in range(198))]


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="w0"
    )


def make_model() -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=len(WORDS), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, eos_token_id=1,
        bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config)


def even_words(completion_ids: list[list[int]], **_: object) -> list[float]:
    return [sum(i % 2 == 0 for i in ids) / max(len(ids), 1) for ids in completion_ids]


def main(steps: int = 60) -> list[float]:
    """Trains, and gives the mean reward of each step."""
    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            output_dir=folder, max_steps=steps, learning_rate=3e-3, num_generations=8,
            per_device_train_batch_size=8, gradient_accumulation_steps=4, max_completion_length=16,
            logging_steps=1, report_to="none", save_strategy="no", bf16=False, use_cpu=True,
            gradient_checkpointing=False,
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=make_model(),
            reward_funcs=even_words,
            args=args,
            train_dataset=Dataset.from_dict({"prompt": [f"w{i} w{2 * i}" for i in range(90)]}),
            processing_class=make_tokenizer(),
            loss="clip_cov",
        )
        trainer.train()
    return [row["reward"] for row in trainer.state.log_history if "reward" in row]


if __name__ == "__main__":
    rewards = main()
    print(f"mean reward: {rewards[0]:.2f} at first, {rewards[-1]:.2f} in the end")
