"""The token kernels of a CUDA device: those of the compiled core in place of torch's operations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from logitless import _core
from logitless.backends.row_kernels.device import current, stream_of
from logitless.backends.row_kernels.errors import watched
from logitless.backends.token_kernels.cpu import CPU_TOKENS
from logitless.backends.token_kernels.protocol import (
    SUMS,
    Band,
    Candidates,
    CovarianceReport,
    ExactMeans,
    LossTerms,
    LossValues,
    Reduce,
)
from logitless.backends.token_kernels.radix_select import BINS, LEVELS
from logitless.backends.token_kernels.torch_arrays import TorchArrays
from logitless.backends.token_kernels.torch_numbers import from_ordered_bits
from logitless.backends.token_kernels.torch_tokens import OP, DeviceArrays, TorchTokens
from logitless.inputs.tokens import Tokens

# int64 words of a RadixState of csrc/cuda/tokens/tokens.h.
_STATE = 4
# Slots of the table of ids for each token: at most half of them are taken.
SLOTS = 2


class CudaArrays(DeviceArrays):
    """A call's few numbers are the kernels': a launch of one costs as much as that of many."""

    def __init__(self, device: torch.device, run: Callable[..., None]) -> None:
        super().__init__(device)
        self.run = run

    def vector(self, values: tuple[Any, ...], like: Tensor) -> Tensor:  # type: ignore[override]
        if len(values) > _core.tokens.MOST_NUMBERS or not all(map(self._is_number, values)):
            return TorchArrays.vector(values, like)
        out = torch.empty(len(values), dtype=torch.float64, device=self.device)
        self.run("collect_numbers", values, out)
        return out

    def _is_number(self, value: Any) -> bool:
        """Of the host's, or one that the kernels read where it is."""
        if not isinstance(value, Tensor):
            return True
        return value.dtype in (torch.float64, torch.int64) and value.device == self.device

    def inverse(self, count: Any) -> Any:  # type: ignore[override]
        if isinstance(count, int):
            return TorchArrays.inverse(count)
        out = torch.empty((), dtype=torch.float64, device=self.device)
        self.run("count_shares", count, 0.0, out, None)
        return out

    def part(self, fraction: float, count: Any) -> Any:  # type: ignore[override]
        if isinstance(count, int):
            return TorchArrays.part(fraction, count)
        out = torch.empty((), dtype=torch.int64, device=self.device)
        self.run("count_shares", count, fraction, None, out)
        return out

    def sort(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Of int64: ids, and those that are negative are -1."""
        if x.dtype != torch.int64:
            return TorchArrays.sort(x)
        n = len(x)
        found = torch.zeros(1, dtype=torch.int64, device=self.device)
        room, out = (torch.empty(k, dtype=torch.int64, device=self.device) for k in (2 * n, n))
        self.run("sort_ids", x.contiguous(), found, room, out)
        return out


class CudaTokens(TorchTokens):
    """`TokenKernels` of a CUDA device; what has no kernel is the base's."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.xp = CudaArrays(device, self.run)
        self.kernels = _core.tokens.CudaTokens(device.index or 0)

    def params(self, fields: dict[str, Any]) -> Any:
        return CPU_TOKENS.params(fields)

    def run(self, name: str, *arguments: Any, **named: Any) -> None:
        """A kernel on torch's current stream, with arrays of the current device."""
        with current(self.device):
            getattr(self.kernels, name)(*arguments, **named, stream=stream_of(self.device))

    def empty(self, n: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(n, dtype=dtype, device=self.device)

    def refuse(self, tokens: Tokens, good: Tensor, describe: Any) -> None:
        self.run("flag_tokens", good.contiguous(), tokens.places, self.flag())

    def exp(self, tokens: Tokens, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        self.run("exp", x, out)
        return out

    def _fold(self, tokens: Tokens, values: Tensor, *, largest: bool = False) -> Tensor:
        sequences = tokens.require_sequences()
        out = self.empty(sequences.number, torch.float64)
        ends = sequences.lengths.cumsum(0)
        self.run("fold_sequences", ends, tokens.mask, values.contiguous(), largest, out)
        return out

    def exact_means(
        self, tokens: Tokens, first: Tensor, second: Tensor, reduce: Reduce
    ) -> ExactMeans:
        words = torch.zeros(_core.tokens.CUDA_SUM_WORDS, dtype=torch.int64, device=self.device)
        self.run("value_sums", first, second, tokens.mask, words, self.flag())
        words = reduce(words)
        means = self.empty(2, torch.float64)
        self.run("sum_means", words, means)
        numbers: tuple[Any, Any, Any] = (means[0], means[1], words[-1])
        return ExactMeans(*numbers, (0, 0), -1)

    def repeated_id(self, tokens: Tokens) -> None:
        """One is flagged."""
        n = len(tokens.ids)
        if n:
            table = torch.zeros(SLOTS * n, dtype=torch.int32, device=self.device)
            self.run("unique_ids", tokens.ids, tokens.mask, table, self.flag())

    def covariances(
        self, tokens: Tokens, band: Band, old_logp: Tensor | None, most: Any
    ) -> tuple[Candidates, int]:
        found = self._room(tokens)
        self.run(
            "covariance_scores", tokens.logp, tokens.advantages, tokens.mask, old_logp, tokens.ids,
            band._asdict(), found.scores, found.ids, self.flag(),
        )  # fmt: skip
        return found, -1

    def ordered(self, tokens: Tokens, which: Tensor, values: Tensor) -> Candidates:
        found = self._room(tokens)
        self.run("ordered_scores", values, which, tokens.ids, found.scores, found.ids)
        return found

    def _room(self, tokens: Tokens) -> Candidates:
        n = len(tokens.logp)
        return Candidates(self.empty(n, torch.int64), self.empty(n, torch.int64))

    def shuffled(self, candidates: Candidates, seed: int, step: int) -> Candidates:
        self.run("random_scores", candidates.ids, seed, step, candidates.scores)
        return candidates

    def _search(
        self, candidates: Candidates, k: Any, reduce: Reduce, levels: int, *, exact: bool = False
    ) -> tuple[Any, ...]:
        """What `radix_take` goes on from."""
        bins = torch.zeros(LEVELS, BINS, dtype=torch.int64, device=self.device)
        states = self.empty(_STATE * (LEVELS + 1), torch.int64)
        arrays = (candidates.scores, candidates.ids, k, bins, states)
        for level, counts in enumerate(bins[:levels]):
            self.run("radix_levels", *arrays, level, level + 1, exact)
            if (added := reduce(counts)) is not counts:
                counts.copy_(added)
        return arrays

    def _taken(self, candidates: Candidates, k: Any, reduce: Reduce, dtype: torch.dtype) -> Tensor:
        arrays = self._search(candidates, k, reduce, LEVELS)
        taken = self.empty(len(candidates.ids), dtype)
        self.run("radix_take", *arrays, taken, self.flag())
        return taken

    def kth_largest(self, candidates: Candidates, k: Any, reduce: Reduce) -> Any:
        """An array without dimensions."""
        half = LEVELS // 2
        arrays = self._search(candidates, k, reduce, half, exact=True)
        # the level after the last one finds where that has led to
        self.run("radix_levels", *arrays, half, half + 1, True)
        return from_ordered_bits(arrays[-1].view(-1, _STATE)[half, 0])

    def covariance_report(
        self,
        tokens: Tokens,
        means: tuple[Tensor, Tensor],
        number: Tensor,
        quantiles: tuple[float, ...],
        above: float,
        reduce: Reduce,
    ) -> CovarianceReport:
        levels, words = LEVELS // 2, _core.tokens.COVARIANCE_WORDS
        searches = levels * len(quantiles)
        zeros = torch.zeros(words + searches * BINS, dtype=torch.int64, device=self.device)
        states = self.empty(searches * _STATE, torch.int64)
        scores, found = self.empty(len(tokens.logp), torch.int64), self.empty(3, torch.float64)
        self.run(
            "covariance_sums", tokens.logp, tokens.advantages, tokens.mask, *means, above, scores,
            zeros[:words], self.flag(),
        )  # fmt: skip
        self.run("covariance_means", reduce(zeros[:words]), found)
        bins, values = zeros[words:], self.empty(len(quantiles), torch.float64)
        for level, counts in enumerate(bins.view(levels, -1)):
            self.run(
                "quantile_levels", scores, number, quantiles, bins, states, values, level, level + 1
            )
            if (added := reduce(counts)) is not counts:
                counts.copy_(added)
        self.run(
            "quantile_levels", scores, number, quantiles, bins, states, values, levels, levels + 1
        )
        mean, correlation, share = found.unbind()
        return CovarianceReport(mean, correlation, share, values.unbind())

    def outputs(
        self, metrics: tuple[tuple[int, bool], ...], sums: Tensor, total: Any, *, wide: bool
    ) -> tuple[Tensor, Tensor]:
        loss = torch.empty((), dtype=torch.float64 if wide else torch.float32, device=self.device)
        values = self.empty(len(metrics), torch.float32)
        self.run("loss_outputs", sums, SUMS.index("tokens"), total, metrics, loss, values)
        return loss, values

    def members(self, tokens: Tokens, ids: Tensor) -> Tensor:
        out = self.empty(len(tokens.ids), torch.bool)
        self.run("members", tokens.ids, ids.contiguous(), out)
        return out

    def loss(
        self, tokens: Tokens, params: Any, terms: LossTerms, *, entropy: bool, policy: bool
    ) -> LossValues:
        t, logp = terms, tokens.logp
        one = isinstance(t.weights, float) or t.weights.ndim == 0
        g_logp = torch.empty_like(logp)
        g_entropy = torch.empty_like(logp) if entropy else None
        g_policy = self.empty(len(logp), torch.float64) if policy else None
        sums = self.empty(len(SUMS), torch.float64)
        blocks = -(-len(logp) // _core.tokens.LOSS_TOKENS)
        with watched(OP, self.device) as flag:
            self.run(
                "token_loss",
                logp=logp,
                old_logp=t.old_logp,
                advantages=tokens.advantages,
                weights=None if one else t.weights,
                mask=tokens.mask if one else None,
                weight=t.weights if one else 0.0,
                entropy=tokens.entropy,
                kl_logp=t.kl_logp,
                penalty_logp=t.penalty_logp,
                selected=t.selected,
                log_ratio=t.log_ratio,
                factor=t.factor,
                precomputed_loss=t.precomputed_loss,
                precomputed_slope=t.precomputed_slope,
                g_logp=g_logp,
                g_entropy=g_entropy,
                g_policy=g_policy,
                sums=sums,
                mean_advantage=t.mean_advantage,
                mean_logp=t.mean_logp,
                grad_scale=t.grad_scale,
                entropy_coefficient=t.entropy_coefficient,
                kl_coefficient=t.kl_coefficient,
                penalty_coefficient=t.penalty_coefficient,
                log_low=t.log_low,
                log_high=t.log_high,
                params=params,
                blocks=self.empty(blocks * len(SUMS), torch.float64),
                flag=flag,
            )
        return LossValues(sums, g_logp, g_entropy, g_policy)


@functools.cache
def cuda_tokens(device: str) -> CudaTokens:
    """Those of a device."""
    return CudaTokens(torch.device(device))
