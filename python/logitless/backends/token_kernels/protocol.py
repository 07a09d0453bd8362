"""The token kernels of a backend: what the losses cannot write as array functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from logitless.inputs.tokens import Bools, Float64s, Floats, Int64s, Tokens

# Adds an int64 array over the ranks of a batch; it may be written over.
Reduce = Callable[[Any], Any]

# What `TokenKernels.loss` adds up, in this order. The first three carry the token's weight, the
# next six count each valid token as 1, and "tokens" is their number. The last three name a token:
# the first of a value that is not finite, the first of a result that is not, each -1 where there is
# none, and that result.
SUMS = (
    "loss", "policy", "kl", "clipped", "clipped_lower", "selected", "old_minus_new", "entropy",
    "covariance", "tokens", "bad_token", "overflow_token", "overflow_loss",
)  # fmt: skip


class Candidates(NamedTuple):
    """Tokens in the running: larger score (64 unsigned bits in an int64) first, then smaller id."""

    scores: Int64s  # [M]
    ids: Int64s  # [M]
    threads: int = 0


class ExactMeans(NamedTuple):
    """The means of two arrays over the valid tokens of all ranks, and their number."""

    first: float
    second: float
    number: int
    # powers of two of which the values are multiples of ordinary size; 0: they are
    exponents: tuple[int, int]
    # the first valid token of a value that is not finite, or -1
    bad: int


class CovarianceReport(NamedTuple):
    """The mean covariance of the valid tokens of all ranks, the correlation, the share of tokens
    whose covariance is above a limit, and some quantiles."""

    mean: Any
    correlation: Any
    above: Any
    quantiles: tuple[Any, ...]


class Band(NamedTuple):
    """Covariances strictly inside (low, high), of tokens whose log ratio does not leave
    [log_low, log_high] on the side of their advantage."""

    mean_advantage: float
    mean_logp: float
    low: float = float("-inf")
    high: float = float("inf")
    log_low: float = float("-inf")
    log_high: float = float("inf")


class LossTerms(NamedTuple):
    """What the loss of each token is made of, beside logp, advantages and entropy. Arrays are [N];
    None is a part that the loss does not have."""

    # share of a token in the batch; one number where it is the same for all
    weights: float | Float64s
    # the policy that r divides by; None: logp
    old_logp: Floats | None
    # of the KL term, and of the penalty of selected tokens
    kl_logp: Floats | None
    penalty_logp: Floats | None
    selected: Bools | None
    # float64: the sequence's log ratio, what multiplies the policy term, and the policy term itself
    log_ratio: Float64s | None
    factor: Float64s | None
    precomputed_loss: Float64s | None
    precomputed_slope: Float64s | None
    # batch means, for the metric of the covariance
    mean_advantage: float
    mean_logp: float
    # numbers that may differ from step to step
    grad_scale: float
    entropy_coefficient: float
    kl_coefficient: float
    penalty_coefficient: float
    # bounds of the log ratio that the batch chose; None: those of the loss
    log_low: float | None = None
    log_high: float | None = None


class LossValues(NamedTuple):
    sums: Float64s  # [len(SUMS)]
    g_logp: Floats  # [N] d loss / d logp
    g_entropy: Floats | None
    # the policy term's part of g_logp, which then is apart
    g_policy: Float64s | None


class TokenKernels(Protocol):
    """Every array is where the backend computes. What has no size known to the host is one array
    without dimensions there."""

    # Whether values can be read at once. Elsewhere nothing waits: an error is the kernel's to flag.
    on_host: bool
    # the array functions, as in backends/token_kernels/arrays.py
    xp: Any

    def refuse(self, tokens: Tokens, good: Bools, describe: Callable[[int], str]) -> None:
        """ValueError of what `describe` says of the first token that is not good. On a device it is
        flagged."""

    def done(self, op: str) -> None:
        """An op of other kernels than `loss` is at its end: what was flagged in it has its name."""

    def exp(self, tokens: Tokens, x: Float64s) -> Float64s:
        """The same bits on every machine, where the array library does not promise them."""

    def lengths(self, tokens: Tokens) -> Int64s:
        """Valid tokens of each sequence, [B]."""

    def sums(self, tokens: Tokens, values: Float64s) -> Float64s:
        """Over each sequence's valid tokens, [B]."""

    def largest(self, tokens: Tokens, values: Float64s) -> Float64s:
        """Of each sequence's valid tokens, [B], and 0."""

    def ranked(self, tokens: Tokens, values: Float64s, quantile: float) -> Float64s:
        """Of each sequence's n valid tokens, [B], the value that floor(quantile * (n - 1)) of the
        others come before in order; 0 where it has none."""

    def first_ids(self, tokens: Tokens) -> Int64s:
        """The smallest id of each sequence's valid tokens, [B]; 2^63 - 1 where it has none."""

    def total(self, tokens: Tokens, values: Float64s) -> Any:
        """The sum over the valid tokens."""

    def count(self, tokens: Tokens, which: Bools | None) -> Any:
        """How many valid tokens there are, or how many of these are valid."""

    def exact_means(
        self, tokens: Tokens, first: Floats, second: Floats, reduce: Reduce
    ) -> ExactMeans:
        """The sums are exact and each mean rounds once: order and split change no bit."""

    def repeated_id(self, tokens: Tokens) -> int | None:
        """An id that two valid tokens have or that is negative."""

    def covariances(
        self, tokens: Tokens, band: Band, old_logp: Floats | None, most: int
    ) -> tuple[Candidates, int]:
        """The valid tokens inside the band in the order of their covariance; of more than `most`
        some may lack, but not the largest. And the first token of an old_logp that is not finite,
        or -1."""

    def ordered(self, tokens: Tokens, which: Bools, values: Float64s) -> Candidates:
        """Some tokens in the order of their values."""

    def shuffled(self, candidates: Candidates, seed: int, step: int) -> Candidates:
        """The same in an order drawn from (seed, step, id); the scores are written over."""

    def drawn(self, candidates: Candidates, permute: Callable[[int], Int64s], k: Any) -> Int64s:
        """The ids of the first k in an order that the host draws."""

    def take_largest(self, candidates: Candidates, k: Any, reduce: Reduce) -> Int64s:
        """Unordered: the ids on this rank of the k largest keys of all ranks, or all if fewer."""

    def chosen(self, tokens: Tokens, candidates: Candidates, k: Any) -> Bools:
        """Which tokens have the k largest keys of this call, or are candidates (None)."""

    def kth_largest(self, candidates: Candidates, k: int, reduce: Reduce) -> float:
        """The number behind the k-th largest score of all ranks, 1 <= k <= their number."""

    def extremes(
        self, tokens: Tokens, which: Bools, values: Float64s, reduce: Reduce
    ) -> tuple[float, float]:
        """The least and the largest value of some tokens of all ranks; 0 where there are none."""

    def members(self, tokens: Tokens, ids: Int64s) -> Bools:
        """Tokens whose id is among these, which are sorted."""

    def outputs(
        self, metrics: tuple[tuple[int, bool], ...], sums: Float64s, total: Any, *, wide: bool
    ) -> tuple[Any, Any]:
        """The loss in float32 or float64, without dimensions, and metrics in float32: of each the
        place of its sum, and whether it is a mean over `total` tokens; None: over those of the
        call. What float32 cannot hold is infinite."""

    def params(self, fields: dict[str, Any]) -> Any:
        """What never changes about a loss, as `loss` takes it."""

    def loss(
        self, tokens: Tokens, params: Any, terms: LossTerms, *, entropy: bool, policy: bool
    ) -> LossValues:
        """The loss of each token with its derivatives in closed form, csrc/core/token_loss.h.
        entropy: with g_entropy. policy: with g_policy."""


class DeviceTokenKernels(TokenKernels, Protocol):
    """Those of a device: what is one pass there, and array functions on the host."""

    def covariance_report(
        self,
        tokens: Tokens,
        means: tuple[Any, Any],  # of advantages and logp
        number: Any,  # valid tokens of all ranks
        quantiles: tuple[float, ...],
        above: float,
        reduce: Reduce,
    ) -> CovarianceReport:
        """Every number of it stays where it is."""
