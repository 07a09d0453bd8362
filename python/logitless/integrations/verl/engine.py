"""verl's FSDP engine, which tells losses their optimizer batch and the head its rows."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import logitless as ll
from logitless.integrations.head_arrays import has_adapter
from logitless.integrations.transformers.layer import unwrapped
from logitless.integrations.verl import hooks
from logitless.integrations.verl.context import MicroBatch, handed_over
from logitless.integrations.verl.head import HeadCall, has_head, measure
from logitless.integrations.verl.losses import arguments, is_ours, spec_of, totals_of
from logitless.integrations.verl.rows import NUMBERS, Responses, loss_data, plain


class OptimizerBatch(NamedTuple):
    """What the micro-batches of one optimizer step share."""

    spec: ll.PolicyLossSpec
    batch: ll.BatchStats | None
    one_pass: bool


# verl's, of the version that is there.
_Engine: Any = object


class LogitlessEngine(_Engine):  # type: ignore[misc]
    """Mixed into verl's engine, whose methods it calls; it does nothing until a name of ours is
    in the configuration."""

    _has_head = False
    _optimizer_batch: OptimizerBatch | None = None
    _scorer: LossScorer | None = None
    _steps = 0

    def _build_fsdp_module(self, module: Any) -> Any:
        if has_head(module) and has_adapter(unwrapped(module)):
            raise ValueError(
                f"{type(unwrapped(module)).__name__}: its head has an adapter, a layer that FSDP2 "
                "cannot shard on its own as verl asks: leave it out of target_modules"
            )
        wrapped = super()._build_fsdp_module(module)
        self._has_head = measure(wrapped)
        return wrapped

    def forward_backward_batch(
        self: Any, data: Any, loss_function: Any, forward_only: bool = False
    ) -> Any:
        config: Any = getattr(loss_function, "keywords", {}).get("config")
        if not is_ours(config):
            return super().forward_backward_batch(data, loss_function, forward_only)
        spec = spec_of(config, Responses(data).width)
        rows = len(data["input_ids"].offsets()) - 1
        first = rows * self.get_data_parallel_rank()
        data[NUMBERS] = torch.arange(first, first + rows)
        if "entropy" in spec.needs:
            data.set_non_tensor("calculate_entropy", True)
        batch = self._batch_stats(data, spec) if spec.selects or spec.needs_means else None
        alone = not (config.entropy_coeff or config.use_kl_loss)
        one_pass = self._has_head and alone and not forward_only and self._packed(data)
        self._optimizer_batch = OptimizerBatch(spec, batch, one_pass)
        self._steps += not forward_only
        try:
            return super().forward_backward_batch(data, loss_function, forward_only)
        finally:
            self._optimizer_batch = None
            data.pop(NUMBERS)

    def _batch_stats(self: Any, data: Any, spec: ll.PolicyLossSpec) -> ll.BatchStats:
        """Of the weights at hand, as verl's own losses see them: one scoring without gradients."""
        scored = super().forward_backward_batch(data, None, True)["model_output"]
        data = loss_data(data, scored["log_probs"].device)
        responses = Responses(data)
        mask, advantages, old, rollout = (
            responses.padded(data, name)
            for name in ("response_mask", "advantages", "old_log_probs", "rollout_log_probs")
        )
        logp = responses.of_tokens(scored["log_probs"])
        entropy = responses.of_tokens(scored["entropy"]) if "entropy" in spec.needs else None
        several = self.get_data_parallel_size() > 1
        return ll.batch_stats(
            logp, advantages, mask.bool(), spec, old_logp=old, entropy=entropy,
            rollout_logp=rollout if "rollout_logp" in spec.needs else None,
            token_ids=responses.token_ids(data),
            data_group=self.get_data_parallel_group() if several else None,
            seed=int(getattr(self.engine_config, "seed", 0) or 0), step=self._steps,
        )  # fmt: skip

    def _packed(self: Any, data: Any) -> bool:
        """Whether a forward's rows are the tokens of the data, and nothing else."""
        padding = plain(data, "use_remove_padding", True)
        return padding and not (self.use_ulysses_sp or self.pad_to_length)

    def forward_step(self: Any, micro_batch: Any, loss_function: Any, forward_only: bool) -> Any:
        shared = self._optimizer_batch
        if shared is None or loss_function is None:
            return super().forward_step(micro_batch, loss_function, forward_only)

        def told(model_output: dict[str, Any], data: Any, dp_group: Any = None) -> Any:
            micro = _micro_batch(data, shared, model_output.get("entropy"))
            if self._scorer is not None:
                micro = micro._replace(made=self._scorer.made)
            with handed_over(micro):
                return loss_function(model_output=model_output, data=data, dp_group=dp_group)

        if shared.one_pass:
            self._scorer = LossScorer(micro_batch, shared)
        try:
            return super().forward_step(micro_batch, told, forward_only)
        finally:
            self._scorer = None

    def prepare_model_inputs(self: Any, micro_batch: Any) -> Any:
        fused = plain(micro_batch, "use_fused_kernels", False)
        if not (self._has_head and fused):
            return super().prepare_model_inputs(micro_batch)
        temperature = micro_batch["temperature"]
        per_sample = isinstance(temperature, Tensor) and temperature.numel() > 1
        if isinstance(temperature, Tensor):
            # verl's fused heads know one number; this one has its own way to them.
            micro_batch = micro_batch.clone(recurse=False)
            micro_batch.pop("temperature")
            number = 1.0 if per_sample else temperature.item()
            micro_batch.set_non_tensor("temperature", number)
        inputs, args = super().prepare_model_inputs(micro_batch)
        packed = plain(micro_batch, "use_remove_padding", True)
        if per_sample:
            inputs["temperature"] = self._temperatures(micro_batch, temperature, packed, inputs)
        if packed and not self.use_ulysses_sp and micro_batch.get("responses", None) is not None:
            rows = Responses(micro_batch).rows[None]
            inputs["scored_rows"] = _extended(rows, inputs["shift_labels"], False)
        if self._scorer is not None:
            inputs["scorer"] = self._scorer
        return inputs, args

    def _temperatures(
        self: Any, micro_batch: Any, of_sample: Tensor, packed: bool, inputs: dict[str, Any]
    ) -> Tensor:
        of_sample = of_sample.to(inputs["input_ids"].device, torch.float32).reshape(-1)
        if not packed:
            return of_sample[:, None].expand_as(inputs["input_ids"])
        if self.use_ulysses_sp:
            raise NotImplementedError(
                "a temperature per sample with ulysses_sequence_parallel_size > 1 is not built"
            )
        lengths = micro_batch["input_ids"].offsets().diff()
        of_token = of_sample.repeat_interleave(lengths)[None]
        return _extended(of_token, inputs["shift_labels"], 1.0)

    def prepare_model_outputs(
        self: Any, output: Any, output_args: Any, micro_batch: Any, logits_processor_func: Any
    ) -> Any:
        if self._scorer is not None:
            # Only what left the model through its outputs has the engine's hooks.
            self._scorer.made = self._scorer.made._replace(loss=output.loss)
        return super().prepare_model_outputs(
            output, output_args, micro_batch, logits_processor_func
        )


class LossScorer:
    """The policy loss of a micro-batch in the place of the head's product; then `made` has it."""

    def __init__(self, data: Any, shared: OptimizerBatch) -> None:
        self._data, self._shared = data, shared
        self.made: Any = None

    def __call__(self, call: HeadCall) -> tuple[Tensor, Tensor, Tensor]:
        device, spec = call.hidden.device, self._shared.spec
        data = loss_data(self._data, device)
        responses = Responses(data)
        mask = responses.padded(data, "response_mask").bool()
        micro = _micro_batch(data, self._shared, None)
        info = {
            name: plain(data, name, None)
            for name in ("batch_num_tokens", "global_batch_size", "dp_size")
        }
        more = arguments(spec, micro, totals_of(info, mask))
        rows: dict[str, Any] = {
            **{name: more.pop(name) for name in ("ref_logp", "rollout_logp") if name in more},
            "old_logp": responses.padded(data, "old_log_probs"),
            "advantages": responses.padded(data, "advantages"),
            "weights": responses.padded(data, "rollout_is_weights"),
            "token_ids": more.pop("token_ids"),
            "mask": mask,
        }
        options = dict(call.options)
        if isinstance(options["temperature"], Tensor):
            options["temperature"] = options["temperature"][0]
        out = ll.linear_policy_loss(
            call.hidden[0], call.weight, call.labels[0], spec=spec,
            cu_seqlens=responses.offsets.to(torch.int32),
            grad_scale=float(info["dp_size"] or 1),
            **{name: responses.placed(x) for name, x in rows.items()}, **more, **options,
        )  # fmt: skip
        self.made = ll.PolicyLossOutput(out.loss, out.metrics)
        return out.logp[None], out.entropy[None], out.loss


def _micro_batch(data: Any, shared: OptimizerBatch, entropy: Any) -> MicroBatch:
    responses = Responses(data)
    return MicroBatch(
        None if entropy is None else responses.of_tokens(entropy),
        responses.padded(data, "ref_log_prob"),
        responses.padded(data, "rollout_log_probs"),
        responses.token_ids(data),
        shared.batch,
    )


def _extended(x: Tensor, labels: Tensor, value: Any) -> Tensor:  # [1, N]
    """Up to the tokens that the engine put behind the last."""
    return nn.functional.pad(x, (0, labels.shape[1] - x.shape[1]), value=value)


def replace_engine(module: ModuleType) -> None:
    """verl's table of engines has this one wherever it had its own."""
    base = hooks.find(module, hooks.ENGINE)
    for name, known in hooks.ENGINE_METHODS.items():
        method = getattr(base, name, None)
        if method is None:
            raise hooks.unknown(f"{module.__name__}.{hooks.ENGINE}.{name}", "none")
        hooks.check(f"{module.__name__}.{hooks.ENGINE}.{name}", method, known)
    engine = type(hooks.ENGINE, (LogitlessEngine, base), {"__module__": __name__})
    table = hooks.find(module, hooks.REGISTRY)._engines["language_model"]
    places = [(x, key) for x in table.values() for key, kind in x.items() if kind is base]
    if not places:
        raise hooks.unknown(f"{hooks.ENGINE} in {hooks.REGISTRY}", "none")
    for devices, key in places:
        devices[key] = engine
