"""Tokens are selected by Triton's kernels in place of torch's operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from logitless.backends.token_kernels.protocol import Band, Candidates, Reduce
from logitless.backends.token_kernels.torch_arrays import TorchArrays
from logitless.backends.token_kernels.torch_tokens import DeviceArrays, TorchTokens
from logitless.inputs.tokens import Tokens
from logitless.kernels.tokens.selection.covariance_scores import Limits, covariance_scores
from logitless.kernels.tokens.selection.gather_ids import gather_ids
from logitless.kernels.tokens.selection.merge_runs import WAYS, merge_runs
from logitless.kernels.tokens.selection.ordered_scores import ordered_scores
from logitless.kernels.tokens.selection.radix import Search
from logitless.kernels.tokens.selection.radix_level import radix_level
from logitless.kernels.tokens.selection.radix_take import radix_take
from logitless.kernels.tokens.selection.radix_values import radix_values
from logitless.kernels.tokens.selection.random_scores import random_scores
from logitless.kernels.tokens.selection.sort_runs import RUN, sort_runs
from logitless.kernels.tokens.selection.unique_ids import unique_ids


class SortingArrays(DeviceArrays):
    """Ids are sorted by kernels."""

    def sort(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Of int64: ids, and those that are negative are -1."""
        if x.dtype != torch.int64:
            return TorchArrays.sort(x)
        found = x.new_zeros(1)
        ids, out = torch.empty_like(x), torch.empty_like(x)
        gather_ids(x.contiguous(), ids, found)
        sort_runs(ids, found)
        width, last = RUN, False
        while not last:
            last = width * WAYS >= len(x)
            merge_runs(ids, out, found, width=width, last=last)
            ids, out, width = out, ids, width * WAYS
        return ids


class TritonSelection(TorchTokens):
    """What selects tokens in `TokenKernels`; what has no kernel is the base's."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.xp = SortingArrays(device)

    def repeated_id(self, tokens: Tokens) -> None:
        """One is flagged, by the second token that has it."""
        unique_ids(tokens.ids, tokens.mask, self.flag())

    def covariances(
        self, tokens: Tokens, band: Band, old_logp: Tensor | None, most: Any
    ) -> tuple[Candidates, int]:
        found = self._room(tokens)
        covariance_scores(
            found.scores, found.ids, self.flag(), logp=tokens.logp, advantages=tokens.advantages,
            mask=tokens.mask, old_logp=old_logp, ids=tokens.ids,
            means=(self._mean(band.mean_advantage), self._mean(band.mean_logp)),
            limits=Limits(band.low, band.high, band.log_low, band.log_high),
        )  # fmt: skip
        return found, -1

    def _mean(self, value: Any) -> Tensor:
        if isinstance(value, Tensor):
            return value
        return torch.full((), value, dtype=torch.float64, device=self.device)

    def _candidates(self, tokens: Tokens, which: Tensor, values: Tensor) -> Candidates:
        found = self._room(tokens)
        ordered_scores(
            found.scores, found.ids, values=values.contiguous(), which=which.contiguous(),
            ids=tokens.ids,
        )  # fmt: skip
        return found

    def _room(self, tokens: Tokens) -> Candidates:
        scores = torch.empty(len(tokens.logp), dtype=torch.int64, device=self.device)
        return Candidates(scores, torch.empty_like(scores))

    def shuffled(self, candidates: Candidates, seed: int, step: int) -> Candidates:
        random_scores(candidates.scores, candidates.ids, seed=seed, step=step)
        return candidates

    def _search(self, candidates: Candidates, reduce: Reduce, **options: Any) -> Search:
        search = Search.among(candidates.scores, candidates.ids, **options)
        for level, counts in enumerate(search.bins):
            radix_level(search, level)
            if (added := reduce(counts)) is not counts:
                counts.copy_(added)
        return search

    def _taken(self, candidates: Candidates, k: Any, reduce: Reduce, dtype: torch.dtype) -> Tensor:
        search = self._search(candidates, reduce, k=self._number(k))
        taken = torch.empty_like(candidates.ids, dtype=dtype)
        radix_take(search, taken, self.flag())
        return taken

    def _values(self, search: Search, **options: float) -> Tensor:
        values = torch.empty(search.searches, dtype=torch.float64, device=self.device)
        radix_values(search, values, **options)
        return values

    def kth_largest(self, candidates: Candidates, k: Any, reduce: Reduce) -> Any:
        """An array without dimensions."""
        return self._values(self._search(candidates, reduce, k=self._number(k), exact=True))[0]

    def extremes(
        self, tokens: Tokens, which: Tensor, values: Tensor, reduce: Reduce
    ) -> tuple[Any, Any]:
        """Arrays without dimensions."""
        running = self.ordered(tokens, which, values)
        search = self._search(running, reduce, quantiles=(0.0, 1.0), exact=True)
        least, most = self._values(search, empty=0.0).unbind()
        return least, most

    def _quantiles(
        self,
        tokens: Tokens,
        values: Tensor,
        number: Tensor,
        quantiles: tuple[float, ...],
        reduce: Reduce,
    ) -> tuple[Tensor, ...]:
        running = self.ordered(tokens, tokens.mask, values)
        return self._values(self._search(running, reduce, quantiles=quantiles, exact=True)).unbind()
