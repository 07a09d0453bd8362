"""verl's FSDP2 engine over tiny models on a CPU, and the batches that its trainer hands it."""

from __future__ import annotations

import functools
import os
import socket
import types
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.plugins.tiny_model import tiny_model
from tests.plugins.verl.setting import actor_config

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import verl.models.transformers.monkey_patch as patches
    import verl.workers.engine.fsdp.transformer_impl  # noqa: F401 - it registers the engine
    from tensordict import TensorDict
    from verl.trainer.config import CheckpointConfig
    from verl.utils import tensordict_utils as tu
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
    from verl.workers.engine.base import EngineRegistry
    from verl.workers.utils.losses import ppo_loss
    from verl.workers.utils.padding import left_right_2_no_padding, no_padding_2_padding

# verl takes any folder of that name on the path for TRL, and looks for a class that is gone.
patches.is_trl_available = lambda: False
VOCAB, ROWS, PROMPT, LENGTH = 211, 8, 6, 9


def one_process() -> None:
    """A group of this process alone, which the engine wants."""
    if torch.distributed.is_initialized():
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)


def save_model(folder: Path, kind: str = "Qwen2", *, spread: float = 0.3, **options: Any) -> Path:
    """A random model in a folder, tied unless asked otherwise."""
    sizes = {"vocab_size": VOCAB, "tie_word_embeddings": True, **options}
    tiny_model(kind, spread, **sizes).save_pretrained(folder)
    return folder


def engine(folder: Path, backend: str | None, *, dtype: str = "fp32", **options: Any) -> Any:
    """`backend`: None for verl's own way by logits, else the impl_backend of its fused kernels."""
    one_process()
    model = HFModelConfig(
        path=str(folder), load_tokenizer=False, use_remove_padding=True,
        override_config={"attn_implementation": "eager"}, enable_gradient_checkpointing=False,
        use_fused_kernels=backend is not None,
        fused_kernel_options={} if backend is None else {"impl_backend": backend}, **options,
    )  # fmt: skip
    config = FSDPEngineConfig(
        strategy="fsdp2", use_torch_compile=False, model_dtype="fp32",
        mixed_precision={"param_dtype": dtype, "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
    )  # fmt: skip
    kind = EngineRegistry.get_engine_cls("language_model", "fsdp2")
    optimizer = FSDPOptimizerConfig(lr=1e-3, total_training_steps=10)
    made = kind(model, config, optimizer, CheckpointConfig())
    made._build_model_optimizer()
    made.fused = backend is not None
    return made


def data(seed: int = 1, temperature: float | Tensor = 1.0, rows: int = ROWS) -> TensorDict:
    """As a trainer of verl's makes it: prompts padded on the left, responses on the right."""
    g = torch.Generator().manual_seed(seed)
    prompts = torch.randint(3, VOCAB, (rows, PROMPT), generator=g)
    responses = torch.randint(3, VOCAB, (rows, LENGTH), generator=g)
    starts = torch.arange(rows)[:, None] % 3
    lengths = torch.tensor([9, 6, 3, 8, 1, 7, 9, 5])[torch.arange(rows) % 8][:, None]
    mask = torch.arange(LENGTH) < lengths
    attention = torch.cat((torch.arange(PROMPT) >= starts, mask), dim=1).long()
    response_mask = mask.long()
    # A tool's token.
    response_mask[0, 4] = 0
    td = TensorDict(
        {
            "input_ids": torch.cat((prompts, responses), dim=1),
            "prompts": prompts,
            "responses": responses,
            "attention_mask": attention,
            "position_ids": (attention.cumsum(1) - 1).clamp(min=0),
            "response_mask": response_mask,
            "advantages": torch.randn(rows, 1, generator=g).expand(rows, LENGTH) * response_mask,
            "noise": 0.3 * torch.randn(rows, LENGTH, generator=g),
            "more": 0.2 * torch.randn(rows, LENGTH, generator=g),
        },
        batch_size=[rows],
    )
    td = left_right_2_no_padding(td)
    if isinstance(temperature, Tensor):
        td["temperature"] = temperature
    else:
        tu.assign_non_tensor(td, temperature=temperature)
    return td


def prepared(
    made: Any, td: TensorDict, micro_batches: int, of_all: int | None = None, **options: Any
) -> TensorDict:
    """of_all: sequences of the optimizer batch of all ranks."""
    out = td.clone(recurse=False)
    tu.assign_non_tensor(
        out, use_remove_padding=True, use_dynamic_bsz=False, use_fused_kernels=made.fused,
        micro_batch_size_per_gpu=len(td["responses"]) // micro_batches,
        global_batch_size=of_all or len(td["responses"]), **options,
    )  # fmt: skip
    return out


@torch.no_grad()
def scored(made: Any, td: TensorDict, *, entropy: bool = True) -> dict[str, Tensor]:
    """Log-probs, and entropies where asked for, of responses, [B, T]."""
    batch = prepared(made, td, 2, calculate_entropy=entropy)
    out = made.forward_backward_batch(batch, None, forward_only=True)["model_output"]
    names = ("log_probs", "entropy") if entropy else ("log_probs",)
    return {k: no_padding_2_padding(out[k], batch) for k in names}


def off_policy(td: TensorDict, logp: Tensor) -> TensorDict:
    out = td.clone(recurse=False)
    out["old_log_probs"] = logp + td["noise"]
    out["ref_log_prob"] = logp - td["more"]
    out["rollout_log_probs"] = logp + td["noise"] + td["more"]
    return out


class Step(types.SimpleNamespace):
    loss: float
    gradients: dict[str, Tensor]
    metrics: dict[str, float]


def step(
    made: Any, td: TensorDict, config: Any, micro_batches: int = 1, of_all: int | None = None
) -> Step:
    """Gradients of one optimizer step, by the engine's own loop but for the optimizer."""
    made.module.zero_grad()
    entropy = bool(config.entropy_coeff) or config.calculate_entropy
    batch = prepared(made, td, micro_batches, of_all, calculate_entropy=entropy)
    loss = functools.partial(ppo_loss, config=config)
    torch.manual_seed(0)
    out = made.forward_backward_batch(batch, loss)
    gradients = {
        name: p.grad.full_tensor().clone()
        for name, p in made.module.named_parameters()
        if p.grad is not None
    }
    metrics = {
        k: float(v.aggregate()) for k, v in out["metrics"].items() if hasattr(v, "aggregate")
    }
    return Step(loss=sum(out["loss"]), gradients=gradients, metrics=metrics)


def distance(a: Step, b: Step) -> float:
    """The largest difference of a gradient to the largest gradient, over parameters."""
    assert a.gradients.keys() == b.gradients.keys() and a.gradients
    return max(
        ((x - b.gradients[k]).abs().max() / x.abs().max().clamp(min=1e-30)).item()
        for k, x in a.gradients.items()
    )


__all__ = [
    "ROWS", "Step", "actor_config", "data", "distance", "engine", "off_policy", "one_process",
    "patches", "ppo_loss", "prepared", "save_model", "scored", "step",
]  # fmt: skip
