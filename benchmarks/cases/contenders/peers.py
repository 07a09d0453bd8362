"""Other libraries, each imported only when it is to run and called the way that suits it best.

./dev bench --install-peers puts them into .venv-peers. One that is absent is skipped by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import logitless as ll
from benchmarks.cases.contenders.plain import policy_from
from benchmarks.cases.inputs import TokenInputs
from benchmarks.cases.specs import CLIP, CLIP_CONTROL, DUAL, KL_CONTROL, WEIGHTS
from benchmarks.harness.case import Implementation, Results
from benchmarks.harness.machine_info import installed

Function = Callable[..., Results]
# Vocabulary entries per step of TRL's chunked head, its own default.
TRL_CHUNK = 32_768


def attribute(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def trl_rows() -> Function:
    both = attribute("trl.trainer.utils", "selective_log_softmax_and_entropy")

    def run(logits: Tensor, targets: Tensor) -> Results:
        logp, entropy = both(logits, targets)
        return {"logp": logp, "entropy": entropy}

    return run


def trl_head() -> Function:
    chunked = attribute("trl.trainer.utils", "_ChunkedLogProbFunction").apply

    def run(hidden: Tensor, weight: Tensor, targets: Tensor) -> Results:
        bias, temperature, softcap, scale = None, 1.0, None, 1.0
        options = (temperature, TRL_CHUNK, softcap, scale, ("entropy",))
        logp, entropy, *_ = chunked(hidden, weight, bias, targets, *options)
        return {"logp": logp, "entropy": entropy}

    return run


def trl_divergence() -> Function:
    both = attribute("trl.kernels.chunked_divergence", "ChunkedDivergenceFunction").apply
    betas = {"reverse_kl": 1.0, "forward_kl": 0.0, "jsd": 0.5}

    def run(
        hidden: Tensor, weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, kind: str
    ) -> Results:
        heads = (hidden, weight, None, teacher_hidden, teacher_weight, None)
        divergence, entropy = both(*heads, betas[kind])
        return {"divergence": divergence, "entropy": entropy}

    return run


def verl_rows() -> Function:
    logprobs = attribute("verl.utils.torch_functional", "logprobs_from_logits")
    entropies = attribute("verl.utils.torch_functional", "entropy_from_logits")

    def run(logits: Tensor, targets: Tensor) -> Results:
        return {"logp": logprobs(logits, targets), "entropy": entropies(logits)}

    return run


def verl_head() -> Function:
    fused = attribute("verl.utils.experimental.torch_functional", "FusedLinearForPPO")()

    def run(hidden: Tensor, weight: Tensor, targets: Tensor) -> Results:
        logp, entropy = fused(hidden, weight, targets)
        return {"logp": logp, "entropy": entropy}

    return run


def verl_policy(name: str, **options: Any) -> Callable[[], Function]:
    """Its loss `name`; where that selects tokens, those of the call, which here is the batch."""

    def load() -> Function:
        function = attribute("verl.trainer.ppo.core_algos", "get_policy_loss_fn")(name)
        config = attribute("verl.workers.config", "ActorConfig")(
            strategy="fsdp",
            rollout_n=1,
            ppo_micro_batch_size_per_gpu=1,
            ppo_mini_batch_size=1,
            clip_ratio=CLIP,
            clip_ratio_low=CLIP,
            clip_ratio_high=CLIP,
            clip_ratio_c=DUAL,
            policy_loss=attribute("verl.workers.config.actor", "PolicyLossConfig")(
                loss_mode=name, **options
            ),
        )

        def run(logp: Tensor, tokens: TokenInputs) -> Results:
            # One padded sequence that holds all the tokens.
            counts = {"dp_size": 1, "batch_num_tokens": len(logp), "global_batch_size": 1}
            config.global_batch_info.update(counts)
            data = (tokens.old_logp, logp, tokens.advantages, tokens.mask)
            loss, _ = function(*(x[None] for x in data), "token-mean", config)
            return {"loss": loss}

        return run

    return load


verl_clip_cov = verl_policy(
    "clip_cov",
    clip_cov_ratio=CLIP_CONTROL.fraction,
    clip_cov_lb=CLIP_CONTROL.low,
    clip_cov_ub=CLIP_CONTROL.high,
)
verl_kl_cov = verl_policy(
    "kl_cov", kl_cov_ratio=KL_CONTROL.fraction, ppo_kl_coef=KL_CONTROL.coefficient
)


def verl_weights() -> Function:
    module = "verl.trainer.ppo.rollout_corr_helper"
    function = attribute(module, "compute_rollout_correction_weights")

    def run(tokens: TokenInputs) -> Results:
        log_ratio = (tokens.old_logp - tokens.logp)[None]
        weights, _ = function(log_ratio, tokens.mask[None], "token", WEIGHTS.high)
        return {"weights": weights[0]}

    return run


def liger_head() -> Function:
    scaled = attribute(
        "liger_kernel.ops.fused_linear_scaled_cross_entropy",
        "LigerFusedLinearScaledCrossEntropyFunction",
    )

    def run(hidden: Tensor, weight: Tensor, targets: Tensor) -> Results:
        nll, entropy = scaled.apply(hidden, weight, targets, return_entropy=True)
        return {"logp": -nll, "entropy": entropy}

    return run


def cce_head() -> Function:
    linear = attribute("cut_cross_entropy", "linear_cross_entropy")

    def run(hidden: Tensor, weight: Tensor, targets: Tensor) -> Results:
        # Its Triton kernels need a GPU; elsewhere it has a compiled form that holds the logits.
        impl = "cce" if hidden.is_cuda else "torch_compile"
        return {"logp": -linear(hidden, weight, targets, impl=impl, reduction="none")}

    return run


def torch_linear() -> Function:
    linear: Any = getattr(torch.nn.functional, "linear_cross_entropy", None)
    if linear is None:
        raise ImportError(f"torch {torch.__version__} has no linear_cross_entropy")

    def run(hidden: Tensor, weight: Tensor, targets: Tensor) -> Results:
        return {"logp": -linear(hidden, weight, targets, reduction="none")}

    return run


def of_head(head: Callable[[], Function]) -> dict[str, Callable[[], Function]]:
    """Who gives log-probs from a head serves the policy loss too, with plain torch behind it."""
    return {"head": head, "policy": lambda: policy_from(head())}


PEERS = [
    Implementation(
        "TRL",
        "peer",
        {"rows": trl_rows, **of_head(trl_head), "divergence": trl_divergence},
        package="trl",
    ),
    Implementation(
        "verl",
        "peer",
        {
            "rows": verl_rows,
            **of_head(verl_head),
            "loss": verl_policy("vanilla"),
            "clip cov": verl_clip_cov,
            "kl cov": verl_kl_cov,
            "rollout weights": verl_weights,
        },
        package="verl",
    ),
    Implementation("Liger", "peer", of_head(liger_head), package="liger-kernel"),
    Implementation("Apple CCE", "peer", of_head(cce_head), ("logp",), package="cut-cross-entropy"),
    Implementation(
        "torch linear_cross_entropy", "peer", of_head(torch_linear), ("logp",), package="torch"
    ),
]


def libraries() -> dict[str, Any]:
    """The builds and versions that a table of times is of."""
    return {
        "logitless": ll.build_info(),
        "peers": {peer.name: installed(peer.package) for peer in PEERS},
    }
