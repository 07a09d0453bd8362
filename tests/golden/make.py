"""Runs the losses of verl and TRL on one batch and writes what they give, for the tests to replay.

    pip install torch==2.13.0 transformers accelerate datasets trl==1.16.0 tensordict omegaconf \
        hydra-core codetiming ray orjson torchdata pybase64 cachetools uvicorn fastapi
    pip install --no-deps verl==0.9.1
    python tests/golden/make.py            # tests/golden/verl.json, tests/golden/trl.json

In an environment of its own: the tests need neither package.
"""

from __future__ import annotations

import json
import types
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
B, T = 4, 9
CLIP = {"clip_ratio": 0.2, "clip_ratio_low": 0.2, "clip_ratio_high": 0.28}
AGGREGATIONS = (
    "token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean",
    "seq-mean-token-sum-norm",
)  # fmt: skip


def make_batch() -> dict[str, torch.Tensor]:
    """Unequal lengths and a hole; ratios well beyond every clip; no log-prob above 0."""
    g = torch.Generator().manual_seed(20)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    old = -torch.rand(B, T, generator=g, dtype=torch.float64) * 3 - 0.05
    lengths = torch.tensor([9, 6, 3, 7])
    mask = torch.arange(T) < lengths[:, None]
    mask[0, 4] = False
    logp = (old + 0.5 * normal(B, T)).clamp(max=-0.01)
    # a sequence that the policy has left
    logp[3] -= 0.5
    return {
        "old_logp": old,
        "logp": logp,
        "ref_logp": (old + 0.5 * normal(B, T)).clamp(max=-0.01),
        "rollout_logp": (old + 0.3 * normal(B, T)).clamp(max=-0.01),
        "entropy": torch.rand(B, T, generator=g, dtype=torch.float64) * 2,
        "advantages": torch.tensor([1.2, -0.7, 0.4, -1.5], dtype=torch.float64),
        "mask": mask,
    }


def outcome(
    batch: dict[str, torch.Tensor], loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> dict[str, Any]:
    """A loss and its gradients in logp and entropy, 0 outside the mask."""
    logp, entropy = (batch[k].clone().requires_grad_() for k in ("logp", "entropy"))
    value = loss(logp, entropy)
    value.backward()
    out = {"loss": value.item(), "g_logp": listed(logp.grad, batch["mask"])}
    if entropy.grad is not None:
        out["g_entropy"] = listed(entropy.grad, batch["mask"])
    return out


def listed(x: torch.Tensor, mask: torch.Tensor) -> Any:
    return torch.where(mask, x, 0.0).tolist()


# ---- verl


def verl_cases(batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    from verl.trainer.ppo import rollout_corr_helper as correction
    from verl.trainer.ppo.core_algos import get_policy_loss_fn, kl_penalty
    from verl.workers.config import ActorConfig
    from verl.workers.config.actor import PolicyLossConfig

    mask = batch["mask"].to(torch.float64)
    a = batch["advantages"][:, None].expand(B, T)

    def policy(
        name: str, aggregation: str = "token-mean", rows: slice = slice(None), weights: Any = None,
        **options: Any,
    ) -> Callable[..., torch.Tensor]:  # fmt: skip
        fields = {k: options.pop(k) for k in list(options) if k in PolicyLossConfig.__annotations__}
        config = ActorConfig(
            strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, ppo_mini_batch_size=B,
            policy_loss=PolicyLossConfig(loss_mode=name, **fields), **{**CLIP, **options},
        )  # fmt: skip
        config.global_batch_info.update(
            dp_size=1, batch_num_tokens=mask.sum(), global_batch_size=B, loss_scale_factor=32
        )

        def loss(logp: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
            torch.manual_seed(7)
            value, _ = get_policy_loss_fn(name)(
                old_log_prob=batch["old_logp"][rows], log_prob=logp[rows], advantages=a[rows],
                response_mask=mask[rows], loss_agg_mode=aggregation, config=config,
                rollout_is_weights=None if weights is None else weights[rows],
            )  # fmt: skip
            return value

        return loss

    q = batch["old_logp"] - batch["rollout_logp"]
    weigh, reject = (
        correction.compute_rollout_correction_weights,
        correction.compute_rollout_rejection_mask,
    )
    tis, _ = weigh(q, mask, "token", 1.2)
    covariance = {"clip_cov_ratio": 0.2, "clip_cov_lb": -0.5, "clip_cov_ub": 2.0}
    kl_cov = {"kl_cov_ratio": 0.2, "ppo_kl_coef": 0.7}
    losses = {
        **{f"vanilla.{mode}": policy("vanilla", mode, clip_ratio_c=1.5) for mode in AGGREGATIONS},
        "vanilla.weights": policy("vanilla", weights=tis),
        "dppo_tv": policy("dppo_tv", clip_ratio_c=1.3),
        "dppo_kl": policy("dppo_kl", clip_ratio_c=1.3),
        "gspo": policy("gspo", "seq-mean-token-mean"),
        "sapo": policy("sapo"),
        "gpg": policy("gpg"),
        "dro": policy("dro", dro_beta=0.3),
        "cispo": policy("cispo"),
        "geo_mean": policy("geo_mean"),
        "geo_mean.halves": lambda logp, entropy: sum(
            policy("geo_mean", rows=rows)(logp, entropy) for rows in (slice(0, 2), slice(2, 4))
        ),
        "clip_cov": policy("clip_cov", **covariance),
        "clip_cov.weights": policy("clip_cov", weights=tis, **covariance),
        "kl_cov": policy("kl_cov", **kl_cov),
        "kl_cov.weights": policy("kl_cov", weights=tis, **kl_cov),
        "kl_cov.halves": lambda logp, entropy: sum(
            policy("kl_cov", rows=rows, **kl_cov)(logp, entropy)
            for rows in (slice(0, 2), slice(2, 4))
        ),
    }

    def bypass(kind: str, **options: Any) -> Callable[..., torch.Tensor]:
        return policy("bypass_mode", rollout_correction={"loss_type": kind, **options})

    losses["bypass.ppo_clip"] = bypass("ppo_clip", rollout_rs=None, rollout_is=None)
    losses["bypass.reinforce"] = bypass(
        "reinforce", rollout_is="token", rollout_is_threshold=1.4, rollout_rs=None
    )
    kls = {
        name: lambda logp, _, name=name: (kl_penalty(logp, batch["ref_logp"], name) * mask).sum()
        for name in ("k1", "k2", "k3", "abs", "low_var_kl", "k1+", "k3+", "abs+")
    }
    weights = {
        "token": weigh(q, mask, "token", 1.2),
        "sequence": weigh(q, mask, "sequence", 1.2),
        "icepop": weigh(q, mask, "token", "0.8_1.3"),
        "token.normalized": weigh(q, mask, "token", 1.2, True),
        "sequence.normalized": weigh(q, mask, "sequence", 1.2, True),
    }
    rejections = {
        "token_k1": "0.8_1.25", "token_k1.lopsided": "0.8_1.6", "token_k2": "0.03",
        "token_k3": "0.03", "seq_sum_k1": "0.8_1.25", "seq_sum_k2": "0.27", "seq_sum_k3": "0.27",
        "seq_mean_k1": "0.95_1.0526315789473684", "seq_mean_k2": "0.03", "seq_mean_k3": "0.03",
        "seq_max_k2": "0.1", "seq_max_k3": "0.1",
    }  # fmt: skip
    return {
        "losses": {name: outcome(batch, loss) for name, loss in losses.items()},
        "kl": {name: outcome(batch, loss) for name, loss in kls.items()},
        "weights": {name: listed(w, batch["mask"]) for name, (w, _) in weights.items()},
        "kept": {
            name: reject(q, mask, name.split(".")[0], threshold)[0].bool().tolist()
            for name, threshold in rejections.items()
        },
    }


# ---- TRL


class Alone:
    """accelerate's Accelerator in one process."""

    num_processes, sync_gradients = 1, True

    def gather(self, x: Any) -> Any:
        return x

    gather_for_metrics = gather

    def reduce(self, x: Any, reduction: str) -> Any:
        return x

    def pad_across_processes(self, x: Any, dim: int, pad_index: float) -> Any:
        return x


def trl_cases(batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    from trl import GRPOTrainer

    def trainer(loss_type: str, **options: Any) -> Any:
        args = types.SimpleNamespace(
            delta=options.pop("delta", None),
            use_bias_correction_kl=options.pop("corrected", False),
            sapo_temperature_pos=1.0, sapo_temperature_neg=1.05, vespo_k_pos=2.0,
            vespo_lambda_pos=3.0, vespo_k_neg=3.0, vespo_lambda_neg=2.0, entropy_target=0.95,
            entropy_coef_delta=0.3, entropy_coef_max=1.0, entropy_coef_min=0.0,
            steps_per_generation=1,
        )  # fmt: skip
        me = types.SimpleNamespace(
            args=args, loss_type=loss_type, accelerator=Alone(),
            model=types.SimpleNamespace(training=True), top_entropy_quantile=1.0,
            off_policy_mask_threshold=None, importance_sampling_level="token", beta=0.0,
            epsilon_low=0.2, epsilon_high=0.28, use_vllm=False,
            vllm_importance_sampling_correction=False, current_gradient_accumulation_steps=1,
            _entropy_bonus_enabled=False, entropy_coef=0.0, use_adaptive_entropy=False,
            _last_world_entropy=float("inf"), _entropy_window_stats=None, aux_loss_enabled=False,
            _metrics={"train": defaultdict(list)}, max_completion_length=32,
        )  # fmt: skip
        vars(me).update(options)
        me.get_high_entropy_mask = types.MethodType(GRPOTrainer.get_high_entropy_mask, me)
        me.get_off_policy_mask = GRPOTrainer.get_off_policy_mask
        me.get_gamma_weights = GRPOTrainer.get_gamma_weights
        return me

    def loss_of(me: Any, given: dict[str, torch.Tensor], logp: Any, entropy: Any) -> Any:
        me._get_per_token_logps_and_entropies = lambda *_, **__: (logp, entropy, None)
        mask = given["mask"].long()
        q = given["old_logp"] - given["rollout_logp"]
        inputs = {
            "prompt_ids": mask[:, :1], "prompt_mask": mask[:, :1],
            "completion_ids": mask, "completion_mask": mask, "advantages": given["advantages"],
            "old_per_token_logps": given["old_logp"], "ref_per_token_logps": given["ref_logp"],
            "num_items_in_batch": batch["mask"].sum(),
        }  # fmt: skip
        if me.use_vllm:
            inputs["importance_sampling_ratio"] = q.exp().clamp(max=1.2)
        if me.off_policy_mask_threshold is not None:
            inputs["sampling_per_token_logps"] = given["rollout_logp"]
        return GRPOTrainer._compute_loss(me, me.model, inputs)

    def run(loss_type: str, **options: Any) -> dict[str, Any]:
        me = trainer(loss_type, **options)
        return outcome(batch, lambda logp, entropy: loss_of(me, batch, logp, entropy))

    cases = {
        **{name: run(name) for name in ("grpo", "bnpo", "dr_grpo", "dapo", "sapo", "vespo")},
        "gspo": run("grpo", importance_sampling_level="sequence"),
        "luspo": run("luspo", importance_sampling_level="sequence"),
        "cispo": run("cispo", epsilon_high=1.5),
        "delta": run("grpo", delta=1.5),
        "opsm": run("grpo", off_policy_mask_threshold=0.02),
        "top_entropy": run("dapo", top_entropy_quantile=0.4),
        "weights": run("dapo", use_vllm=True, vllm_importance_sampling_correction=True),
        "kl": run("grpo", beta=0.1),
        "kl.corrected": run("grpo", beta=0.1, corrected=True),
        "bonus": run("dapo", _entropy_bonus_enabled=True, entropy_coef=0.3),
    }
    halves = [{k: x[rows] for k, x in batch.items()} for rows in (slice(0, 2), slice(2, 4))]
    cases["bnpo.halves"] = {
        "losses": [
            loss_of(
                trainer("bnpo", current_gradient_accumulation_steps=2), half, half["logp"],
                half["entropy"],
            ).item()
            for half in halves
        ]
    }  # fmt: skip
    me = trainer("dapo", _entropy_bonus_enabled=True, use_adaptive_entropy=True, entropy_coef=0.2)
    steps = []
    for factor in (1.0, 0.5, 0.4, 2.0, 2.0, 2.0, 0.5):
        entropy = batch["entropy"] * factor
        before = 0.0 if me._last_world_entropy > 0.95 else me.entropy_coef
        loss_of(me, batch, batch["logp"], entropy)
        steps.append(
            {"entropy": entropy[batch["mask"]].mean().item(), "applied": before,
             "after": me.entropy_coef}
        )  # fmt: skip
    return {"losses": cases, "adaptive": steps}


def main() -> None:
    batch = make_batch()
    inputs = {k: x.tolist() for k, x in batch.items()}
    for package, cases in (("verl", verl_cases), ("trl", trl_cases)):
        found = {package: version(package), "torch": version("torch")}
        text = json.dumps({"made_with": found, "inputs": inputs, **cases(batch)})
        (HERE / f"{package}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
