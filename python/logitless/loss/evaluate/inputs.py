"""What a policy loss is given beside logp and entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from logitless.inputs.checks import is_tensor, whole
from logitless.inputs.tokens import Array, Int64s, Number
from logitless.loss.spec import BatchClip, Control, Correction, PolicyLossSpec
from logitless.loss.spec.policy_spec import Coefficients, coefficients_of


class _Totals(NamedTuple):
    tokens: Number
    sequences: Number
    world_size: int = 1


class Totals(_Totals):
    """Counts over the whole optimizer batch: all micro-batches of all ranks.

    tokens: valid ones (mask true). sequences: those with at least one valid token; 0 where nobody
    counted them, which only losses that normalise by tokens accept. world_size: the ranks counted
    over, which is what `grad_scale` has to be where the gradients of ranks are averaged (DDP,
    FSDP). `batch_stats` of a device gives tokens and sequences as int64 tensors without dimensions.
    """

    __slots__ = ()

    def __new__(cls, tokens: int, sequences: int, world_size: int = 1) -> Totals:
        counts = (("tokens", tokens, 0), ("sequences", sequences, 0), ("world_size", world_size, 1))
        return super().__new__(
            cls, *(whole(f"Totals.{name}", value, least=least) for name, value, least in counts)
        )


class BatchStats(NamedTuple):
    """What `policy_loss(batch=...)` needs to know about the optimizer batch it is a part of.

    Of tensors on a device every number but seed, step and totals.world_size is a tensor without
    dimensions there, which the host has not waited for: int64 where it counts, else float64.
    `cpu()` has them as Python numbers.
    """

    totals: Totals
    mean_advantage: Number
    mean_logp: Number
    # valid tokens that the means are over
    count: Number
    # int64, sorted: this rank's tokens among the selected ones of all ranks. On a device [N] of N
    # tokens on this rank, and -1 first, in place of each that is not selected
    selected: Any
    seed: int
    step: int
    # what the statistics are for; policy_loss refuses a batch made for another one
    control: Control | None
    correction: Correction | None = None
    # of EntropyWeights, where A > 0 and where A < 0, and of a normalised correction
    mean_credit: tuple[Number, Number] = (0.0, 0.0)
    mean_importance: Number = 1.0
    # int64 [S, 2]: smallest token id and valid tokens of each sequence of this rank, for losses
    # that need sequences whole; else [0, 2]. On a device S is their number, and those without any
    # token come last
    sequences: Any = None
    # bounds of the log ratio, and what they are for: a clip that the batch chooses
    log_bounds: tuple[Number, Number] = (-math.inf, math.inf)
    surrogate: BatchClip | None = None
    # least and largest change of the entropy that Steer weighs tokens by
    change_range: tuple[Number, Number] = (0.0, 0.0)
    # share of the tokens that Entropic finds likely
    likely: Number = 0.0
    # the mean that Siren holds at its anchor
    selected_entropy: Number = 0.0

    def cpu(self) -> BatchStats:
        """The same on the host, as arrays on the CPU have it; of a device it waits for it."""
        if not is_tensor(self.selected):
            return self
        here = {name: _read(value) for name, value in self._asdict().items()}
        here["selected"] = here["selected"][here["selected"] >= 0]
        if here["sequences"] is not None:
            here["sequences"] = here["sequences"][here["sequences"][:, 1] > 0]
        return BatchStats(**here)


def _read(value: Any) -> Any:
    """Tensors on the CPU, and those without dimensions as numbers."""
    if isinstance(value, Totals):
        return Totals(*map(_read, value))
    if type(value) is tuple:
        return tuple(map(_read, value))
    if not is_tensor(value):
        return value
    return value.cpu() if value.ndim else value.item()


class Means(NamedTuple):
    """Batch means over valid tokens, and their number."""

    advantage: float
    logp: float
    tokens: int
    # of the entropy credit where A > 0 and where A < 0, and of the correction's weights, for specs
    # that use them
    credit: tuple[float, float] = (0.0, 0.0)
    importance: float = 1.0
    # powers of two of which advantages and log-probs are multiples of ordinary size; 0: they are
    exponents: tuple[int, int] = (0, 0)
    # of the log ratio, where the batch chooses the clip
    log_bounds: tuple[float, float] = (-math.inf, math.inf)
    # of what Steer weighs tokens by
    change_range: tuple[float, float] = (0.0, 0.0)
    # of the tokens that Entropic finds likely, among all
    likely: float = 0.0
    # of the tokens that Siren chooses
    selected_entropy: float = 0.0

    @classmethod
    def of(cls, batch: BatchStats) -> Means:
        return cls(
            batch.mean_advantage, batch.mean_logp, batch.count, batch.mean_credit,
            batch.mean_importance, log_bounds=batch.log_bounds, change_range=batch.change_range,
            likely=batch.likely, selected_entropy=batch.selected_entropy,
        )  # fmt: skip

    @property
    def numbers(self) -> list[float]:
        """What is known of a batch, as `from_numbers` takes it; the count of a device as it is."""
        tokens: Any = self.tokens
        count = float(tokens) if isinstance(tokens, int) else tokens
        return [
            self.advantage, self.logp, count, *self.credit, self.importance, *self.log_bounds,
            *self.change_range, self.likely, self.selected_entropy,
        ]  # fmt: skip

    @classmethod
    def from_numbers(cls, numbers: Sequence[Any]) -> Means:
        advantage, logp, count, positive, negative, importance, low, high, *changes = numbers
        least, most, likely, selected_entropy = changes
        count = int(count) if isinstance(count, float) else count
        return cls(advantage, logp, count, (positive, negative), importance,
                   log_bounds=(low, high), change_range=(least, most), likely=likely,
                   selected_entropy=selected_entropy)  # fmt: skip


class BatchFacts(NamedTuple):
    """What the tokens of a call need to know of a batch."""

    means: Means
    selected: Int64s
    sequences: Int64s | None

    @classmethod
    def of(cls, batch: BatchStats) -> BatchFacts:
        return cls(Means.of(batch), batch.selected, batch.sequences)


class LossData(NamedTuple):
    """Everything of a call but logp and entropy, as the caller gave it."""

    old_logp: Array | None
    advantages: Array
    mask: Array
    ref_logp: Array | None
    rollout_logp: Array | None
    cu_seqlens: Array | None
    token_ids: Array | None
    # the loss, but for its coefficients
    spec: PolicyLossSpec
    coefficients: Coefficients
    batch: BatchFacts | None
    totals: Totals | None
    grad_scale: float
    weights: Array | None = None
    # metrics are means of the call, not its shares of the batch's
    mean_metrics: bool = False
    old_entropy: Array | None = None

    @property
    def total_tokens(self) -> int | None:
        """What metrics per token are divided by; None: the tokens of the call."""
        return None if self.totals is None or self.mean_metrics else self.totals.tokens


def loss_data(
    old_logp: Array | None,
    advantages: Array,
    mask: Array,
    ref_logp: Array | None,
    rollout_logp: Array | None,
    cu_seqlens: Array | None,
    token_ids: Array | None,
    spec: PolicyLossSpec,
    batch: BatchStats | None,
    totals: Totals | None,
    grad_scale: float,
    weights: Array | None = None,
    metrics: str = "shares",
    old_entropy: Array | None = None,
) -> LossData:
    """From the arguments of a public function."""
    if batch is not None and not is_tensor(mask):
        batch = batch.cpu()
    facts = None if batch is None else BatchFacts.of(batch)
    return LossData(
        old_logp, advantages, mask, ref_logp, rollout_logp, cu_seqlens, token_ids, spec.identity,
        coefficients_of(spec), facts, totals if batch is None else batch.totals, float(grad_scale),
        weights, metrics == "means", old_entropy,
    )  # fmt: skip
