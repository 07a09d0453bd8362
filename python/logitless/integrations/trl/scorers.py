"""What runs in a forward of the model, in the place of its head's product, on completions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

import logitless as ll
from logitless.integrations.trl.call import HeadCall


class Completions:
    """Arrays of completions in the places of the states that predict them.

    States are of prompt and completion, and of virtual tokens that peft may put before them; the
    last one predicts nothing. They stay as they are, for a part of them would be a copy.
    """

    def __init__(self, call: HeadCall, width: int) -> None:
        self._left = call.hidden.shape[1] - width - 1
        self._device = call.hidden.device

    def placed(self, x: Any) -> Any:
        """[B, T] in its places; [B], [B, 1] and None as they are."""
        if x is None or x.dim() == 1 or x.shape[1] == 1:
            return x
        return nn.functional.pad(x.to(self._device), (self._left, 1))


class LossScorer:
    """The policy loss of a micro-batch; afterwards `out` has it."""

    def __init__(
        self,
        targets: Tensor,  # [B, T]
        arrays: dict[str, Tensor | None],  # [B, T], [B, 1] or [B]
        options: dict[str, Any],
    ) -> None:
        self._targets, self._options = targets, {**options}
        self._arrays = {**arrays, "token_ids": self._options.pop("token_ids", None)}
        self.out: Any = None

    def __call__(self, call: HeadCall) -> dict[str, Any]:
        completions = Completions(call, self._targets.shape[1])
        self.out = ll.linear_policy_loss(
            call.hidden,
            call.weight,
            completions.placed(self._targets),
            **{name: completions.placed(x) for name, x in self._arrays.items()},
            **self._options,
            **call.options,
        )
        return _fields(self.out.logp, self.out.entropy, self.out.loss)


class StatsScorer:
    """Log-prob and entropy of a micro-batch, and the extras that are asked for."""

    def __init__(self, targets: Tensor, mask: Tensor, extras: tuple[str, ...]) -> None:
        self._targets, self._mask, self._extras = targets, mask, extras
        self.extras: dict[str, Tensor] = {}

    def __call__(self, call: HeadCall) -> dict[str, Any]:
        width = self._targets.shape[1]
        completions = Completions(call, width)
        stats = ll.linear_token_stats(
            call.hidden,
            call.weight,
            completions.placed(self._targets),
            mask=completions.placed(self._mask),
            extras=self._extras,
            **call.options,
        )
        self.extras = {name: x[:, -width - 1 : -1] for name, x in stats.extras.items()}
        return _fields(stats.logp, stats.entropy)


def _fields(logp: Tensor, entropy: Tensor, loss: Tensor | None = None) -> dict[str, Any]:
    """TRL's output has no field for the last position."""
    return {"loss": loss, "log_probs": logp[:, :-1], "entropy": entropy[:, :-1]}
