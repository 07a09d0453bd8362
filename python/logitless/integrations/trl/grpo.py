"""TRL's GRPO trainer with a loss of this library's, made in one pass with the head's gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import logitless as ll
from logitless.integrations.trl import hooks
from logitless.integrations.trl.arrays import loss_arrays, valid
from logitless.integrations.trl.installation import install
from logitless.integrations.trl.losses import ArgsLoss, given_loss, loss_of_args, scaled
from logitless.integrations.trl.metrics import log_bonus, log_metrics, log_shares, micro_batch
from logitless.integrations.trl.optimizer_batch import OptimizerBatch, Scored, optimizer_batch
from logitless.integrations.trl.scorers import LossScorer, StatsScorer

_Base: Any = hooks.grpo_trainer()


class GRPOTrainer(_Base):  # type: ignore[misc]
    """`trl.GRPOTrainer`, whose loss is a preset or spec.

    loss: a name of `ll.presets`, a PolicyLossSpec, or None: the loss that `args` describes, in
        TRL's normalisation. With a loss given, it is summed over the optimizer batch of all ranks
        and divided by its counts, whatever the number of micro-batches, and tokens are selected
        (Clip-Cov, KL-Cov, ...) among all of it; arguments of TRL's that describe a loss stay at
        their defaults, but for `beta`, which adds TRL's KL term where the spec has none.
        `trainer.policy_loss` may be set to another spec between optimizer steps.
    memory_budget: as in `ll.linear_policy_loss`.

    Everything else as in TRL: data, generation, rewards, advantages, the optimizer, names of
    metrics. With a loss given there are the library's too (actor/cov_mean, ...).

    Raises ValueError for an argument that no spec can say, or that contradicts `loss`, naming it.
    """

    def __init__(
        self, *args: Any, loss: Any = None, memory_budget: int | str | None = None, **options: Any
    ) -> None:
        with install():
            super().__init__(*args, **options)
        hooks.check_grpo_attributes(self)
        self._of_args: ArgsLoss | None = None
        if loss is None:
            self._of_args = loss_of_args(self.args)
            self.policy_loss = self._of_args.spec
        else:
            self.policy_loss = given_loss(loss, self.args)
        self._memory_budget = memory_budget
        # with a loss given: of the optimizer step under way, and the step it began with
        self._batch: OptimizerBatch | None = None
        self._batch_start = 0
        self._eval_batch: OptimizerBatch | None = None
        self._model_inputs = hooks.model_inputs(_Base)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        inputs = super()._prepare_inputs(generation_batch)
        if self._of_args is None:
            if not self.model.training:
                self._eval_batch = self._shared([inputs], old_is_current=True)
            elif self._batch is None:
                self._batch = self._open_batch()
                self._batch_start = self._step
        return inputs

    def training_step(self, *args: Any, **options: Any) -> Any:
        loss = super().training_step(*args, **options)
        if self.accelerator.sync_gradients:
            self._batch = None
        return loss

    def _open_batch(self) -> OptimizerBatch:
        """Of the micro-batches up to the next optimizer step, which TRL has all made."""
        buffered, number = self._buffered_inputs, self.current_gradient_accumulation_steps
        generated = len(buffered) * self.num_iterations
        start = self._step % generated
        if start + number > generated:
            raise ValueError(
                f"loss= needs all of an optimizer batch at once: gradient_accumulation_steps "
                f"({number} here) must divide steps_per_generation * num_iterations ({generated}), "
                f"after which TRL generates anew; {start} of them are done"
            )
        batches = [buffered[(start + i) % len(buffered)] for i in range(number)]
        return self._shared(batches, old_is_current=start == 0)

    def _shared(self, batches: list[dict[str, Any]], *, old_is_current: bool) -> OptimizerBatch:
        several = self.accelerator.num_processes > 1
        return optimizer_batch(
            batches,
            self.policy_loss,
            self._score,
            old_is_current=old_is_current,
            rank=self.accelerator.process_index,
            data_group=torch.distributed.group.WORLD if several else None,
            seed=self.args.seed,
            step=self.state.global_step,
        )

    @torch.no_grad()
    def _score(self, inputs: dict[str, Any]) -> Scored:
        extras = tuple(self.policy_loss.needs & {"entropy_change"})
        scorer = StatsScorer(inputs["completion_ids"], valid(inputs), extras)
        logp, entropy, _ = self._forward(self.model, inputs, scorer)
        return Scored(logp, entropy, scorer.extras.get("entropy_change"))

    def _forward(self, model: Any, inputs: dict[str, Any], scorer: Any) -> Any:
        """TRL makes the model's inputs, and cuts completions out of its outputs."""

        def scoring(*, labels: Any, fused_lm_head: bool, **model_inputs: Any) -> Any:
            return model(**model_inputs, fused_lm_head=scorer)

        ids, mask = (
            torch.cat((inputs[f"prompt_{name}"], inputs[f"completion_{name}"]), dim=1)
            for name in ("ids", "mask")
        )
        return self._get_per_token_logps_and_entropies(
            scoring,
            ids,
            mask,
            inputs["completion_ids"].shape[1],
            compute_entropy=True,
            compute_aux_loss=self.aux_loss_enabled,
            **{name: inputs.get(name) for name in self._model_inputs},
        )

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        mode = "train" if self.model.training else "eval"
        number = self.current_gradient_accumulation_steps if mode == "train" else 1
        mask = valid(inputs)
        spec, options = self._spec(inputs, mask, mode, number)
        arrays = loss_arrays(spec, inputs, mask)
        options |= {"spec": spec, "memory_budget": self._memory_budget}
        scorer = LossScorer(inputs["completion_ids"], arrays, options)
        logp, entropy, aux_loss = self._forward(model, inputs, scorer)
        loss: Tensor = scorer.out.loss
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * aux_loss / number
            gathered = self.accelerator.gather_for_metrics(aux_loss)
            self._metrics[mode]["aux_loss"].append(gathered.mean().item())
        log_metrics(self, mode, spec, micro_batch(arrays, logp, entropy))
        shares = scorer.out.metrics
        if self._of_args is None:
            log_shares(self, mode, shares, number)
        elif spec.entropy is not None:
            log_bonus(self, mode, self._of_args, shares, options["grad_scale"] * number)
        return loss

    def _spec(
        self, inputs: dict[str, Any], mask: Tensor, mode: str, number: int
    ) -> tuple[ll.PolicyLossSpec, dict[str, Any]]:
        """The loss of a micro-batch, and what it is divided by."""
        if self._of_args is None:
            shared, place = self._eval_batch, 0
            if mode == "train":
                shared, place = self._batch, self._step - self._batch_start
            assert shared is not None
            options = shared.options(place)
            return self.policy_loss, {**options, "grad_scale": float(shared.totals.world_size)}
        # TRL counts over all the micro-batches that it generated at once.
        steps = number / self.args.steps_per_generation if mode == "train" else 1
        items = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes * steps
        spec, scale = scaled(self._of_args, mask, items, number)
        return spec, {"grad_scale": scale}
