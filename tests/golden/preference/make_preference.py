"""Runs TRL's DPO losses on one batch and writes what they give, for the tests to replay.

    python tests/golden/preference/make_preference.py      # tests/golden/preference/preference.json

In the environment that make.py describes; verl is not needed.
"""

from __future__ import annotations

import json
import types
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from trl import DPOTrainer

B, T = 5, 6


def make_batch() -> dict[str, torch.Tensor]:
    """B chosen answers, then B rejected ones, of unequal lengths."""
    g = torch.Generator().manual_seed(3)

    def logp() -> torch.Tensor:
        return -torch.rand(2 * B, T, generator=g, dtype=torch.float64) * 3 - 0.05

    lengths = torch.tensor([6, 2, 4, 1, 5, 3, 6, 4, 2, 5])
    return {"logp": logp(), "ref_logp": logp(), "mask": torch.arange(T) < lengths[:, None]}


class Model:
    """Gives log-probs, as TRL's fused head does: 0 outside the answer."""

    def __init__(self, logp: torch.Tensor, mask: torch.Tensor) -> None:
        self.training = False
        self.logp = torch.where(mask, logp, 0.0)

    def __call__(self, **_: Any) -> Any:
        return types.SimpleNamespace(
            log_probs=self.logp, entropy=self.logp.detach(), mean_logits=self.logp.detach(),
            is_top1=self.logp.detach() > 1, log_sum_sq_probs=None, loss=None,
        )  # fmt: skip


class Alone:
    """accelerate's Accelerator in one process."""

    device = torch.device("cpu")

    def gather_for_metrics(self, x: Any) -> Any:
        return x

    gather = gather_for_metrics

    def reduce(self, x: Any, reduction: str = "sum") -> Any:
        return x


def run(
    batch: dict[str, torch.Tensor], form: str, beta: float = 0.1, smoothing: float = 0.0,
    divergence: str = "reverse_kl", alpha: float = 0.5,
) -> dict[str, Any]:  # fmt: skip
    dtype = torch.float32 if divergence == "alpha_divergence" else torch.float64
    logp = batch["logp"].to(dtype, copy=True).requires_grad_()
    # the first token of a row belongs to the prompt
    mask = torch.cat([torch.zeros(2 * B, 1, dtype=torch.long), batch["mask"].long()], dim=1)
    me = types.SimpleNamespace(
        model=Model(logp, batch["mask"]), aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=True, f_divergence_type=divergence, f_alpha_divergence_coef=alpha,
        loss_types=[form], loss_weights=[1.0], beta=beta, label_smoothing=smoothing,
        use_weighting=False, _total_train_tokens=0, accelerator=Alone(),
        args=types.SimpleNamespace(discopop_tau=0.05),
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
    )  # fmt: skip
    ref = torch.where(batch["mask"], batch["ref_logp"].to(dtype), 0.0).sum(1)
    inputs = {
        "input_ids": mask, "attention_mask": mask, "completion_mask": mask,
        "ref_chosen_logps": ref[:B], "ref_rejected_logps": ref[B:],
    }  # fmt: skip
    loss = DPOTrainer._compute_loss(me, me.model, inputs, False)
    loss.backward()
    return {"loss": loss.item(), "g_logp": logp.grad.tolist()}


def main() -> None:
    batch = make_batch()
    smooth = {"exo_pair": 1e-3, "robust": 0.1, "aot": 0.1, "aot_unpaired": 0.1}
    forms = (
        "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard",
        "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sigmoid_norm", "sft",
    )  # fmt: skip
    cases = {name: run(batch, name, smoothing=smooth.get(name, 0.0)) for name in forms}
    cases["sigmoid.smoothing_ignored"] = run(batch, "sigmoid", smoothing=0.1)
    for name in ("forward_kl", "js_divergence", "alpha_divergence"):
        cases[f"sigmoid.{name}"] = run(batch, "sigmoid", 0.5, divergence=name)
    cases["hinge.beta"] = run(batch, "hinge", 0.9)
    found = {"trl": version("trl"), "torch": version("torch")}
    inputs = {name: x.tolist() for name, x in batch.items()}
    text = json.dumps({"made_with": found, "inputs": inputs, "losses": cases})
    Path(__file__).with_name("preference.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
