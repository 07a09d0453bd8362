"""A small GPTModel of Megatron's on one rank of a tensor-parallel group, scored two ways.

python -m tests.plugins.verl.megatron_step RANK WORLD PORT OUT
"""

from __future__ import annotations

import contextlib
import os
import sys
import types
from typing import Any, NamedTuple

import torch
from torch import Tensor

V, H, S, TEMPERATURE = 96, 16, 12, 0.7


class Scored(NamedTuple):
    logp: Tensor  # [S]
    entropy: Tensor
    gradients: dict[str, Tensor]  # of this rank's parameters


def initialise(rank: int, world: int, port: int) -> None:
    """Groups of Megatron over gloo, and Megatron's calls of CUDA answered for a CPU."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    import tests.plugins.verl.setting  # noqa: F401  (a platform for verl, before verl)

    torch.distributed.init_process_group("gloo")
    import megatron.core.tensor_parallel as tensor_parallel
    from megatron.core import parallel_state
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=world)
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[method-assign,assignment,return-value]
    tracker = types.SimpleNamespace(fork=lambda *_: contextlib.nullcontext())
    tensor_parallel.get_cuda_rng_tracker = lambda: tracker
    # its own refuses to scatter the sequence, since nobody here adds up the gradients of norms
    WrappedTorchNorm.__new__ = lambda cls, config, hidden_size, eps=1e-5, **_: torch.nn.LayerNorm(
        hidden_size, eps
    )


def gpt_model(*, sequence_parallel: bool, tied: bool) -> Any:
    from megatron.core import parallel_state
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    torch.manual_seed(0)
    config = TransformerConfig(
        num_layers=1,
        hidden_size=H,
        num_attention_heads=2,
        tensor_model_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
        sequence_parallel=sequence_parallel,
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        bias_dropout_fusion=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=0.5,
    )
    return GPTModel(
        config, get_gpt_layer_local_spec(), vocab_size=V, max_sequence_length=S,
        share_embeddings_and_output_weights=tied,
    )  # fmt: skip


def inputs() -> tuple[dict[str, Tensor], Tensor]:
    """Of a packed row, and its labels."""
    ids, labels = torch.randint(V, (2, 1, S), generator=torch.Generator().manual_seed(1))
    attention = torch.ones(1, 1, S, S).triu(1).bool()
    return {
        "input_ids": ids, "position_ids": torch.arange(S)[None], "attention_mask": attention
    }, labels  # fmt: skip


def by_logits(model: Any) -> Scored:
    """verl's functions for a model whose kernels are not fused."""
    from verl.utils.megatron.tensor_parallel import (
        vocab_parallel_entropy,
        vocab_parallel_log_probs_from_logits,
    )

    given, labels = inputs()
    logits = model(**given)[0] / TEMPERATURE
    logp = vocab_parallel_log_probs_from_logits(logits.clone(), labels[0])
    return _scored(model, logp, vocab_parallel_entropy(logits.clone()))


def fused(model: Any) -> Scored:
    """verl's fused forward."""
    given, labels = inputs()
    out = model(**given, labels=labels, temperature=TEMPERATURE)
    return _scored(model, out.log_probs, out.entropy)


@torch.no_grad()
def by_hook(model: Any) -> Tensor:
    """Log-probs as Megatron 0.18 and later asks verl for them, after the decoder."""
    from verl.models.mcore.model_forward_fused import (
        FusedOutputProcessorContext,
        fused_output_processor,
    )

    given, labels = inputs()
    states: list[Tensor] = []
    handle = model.decoder.register_forward_hook(lambda *call: states.append(call[-1]))
    fused_forward, model.forward = model.forward, model.forward_backup
    model(**given)
    model.forward = fused_forward
    handle.remove()
    tied = model.share_embeddings_and_output_weights
    out = fused_output_processor(
        hidden_states=states[0], output_layer=model.output_layer,
        output_weight=model.shared_embedding_or_output_weight() if tied else None, labels=labels,
        context=FusedOutputProcessorContext(TEMPERATURE), config=model.config,
    )  # fmt: skip
    found: Tensor = out.log_probs
    return found


def _scored(model: Any, logp: Tensor, entropy: Tensor) -> Scored:
    model.zero_grad()
    weights = torch.linspace(-1, 1, S)
    (weights * logp + 0.3 * weights.flip(0) * entropy).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    return Scored(logp.detach(), entropy.detach(), found)


def engine_of(model: Any, impl_backend: str) -> Any:
    """What verl's engine asks of itself when it turns fused kernels on."""
    return types.SimpleNamespace(
        engine_config=types.SimpleNamespace(use_fused_kernels=True, use_remove_padding=True),
        model_config=types.SimpleNamespace(
            mtp=types.SimpleNamespace(enable=False),
            fused_kernel_options={"impl_backend": impl_backend},
        ),
        is_value_model=False,
        module=[model],
    )


def turn_on(model: Any, impl_backend: str = "logitless") -> None:
    from verl.workers.engine.megatron.transformer_impl import MegatronEngineWithLMHead

    MegatronEngineWithLMHead._maybe_enable_fused_kernels(engine_of(model, impl_backend))


def main() -> None:
    from logitless.integrations.verl.megatron import MARK

    rank, world, port = map(int, sys.argv[1:4])
    initialise(rank, world, port)
    found = {}
    for sequence_parallel in {False, world > 1}:
        for tied in (False, True):
            model = gpt_model(sequence_parallel=sequence_parallel, tied=tied)
            expected = by_logits(model)
            turn_on(model, "triton")
            assert not any(hasattr(weight, MARK) for weight in model.parameters())
            turn_on(model)
            results = (expected._asdict(), fused(model)._asdict(), by_hook(model))
            found[f"{sequence_parallel=}, {tied=}"] = results
    torch.save(found, f"{sys.argv[4]}.{rank}")


if __name__ == "__main__":
    main()
