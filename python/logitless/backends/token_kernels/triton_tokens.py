"""The token kernels of a device by Triton's, where there is no compiled core."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from logitless.backends.row_kernels.errors import watched
from logitless.backends.token_kernels.protocol import (
    SUMS,
    ExactMeans,
    LossTerms,
    LossValues,
    Reduce,
)
from logitless.backends.token_kernels.torch_tokens import OP, Spread
from logitless.backends.token_kernels.triton_selection import TritonSelection
from logitless.inputs.tokens import Tokens
from logitless.kernels.tokens.flag_bad import flag_bad
from logitless.kernels.tokens.loss.exp_values import exp_values
from logitless.kernels.tokens.loss.loss_outputs import loss_outputs
from logitless.kernels.tokens.loss.loss_sums import loss_sums
from logitless.kernels.tokens.loss.token_loss import ADDED, programs_of, token_loss
from logitless.kernels.tokens.sums.exact_means import exact_means
from logitless.kernels.tokens.sums.exact_sums import Centre, exact_sums, words_of


class TritonTokens(TritonSelection):
    """`TokenKernels` of a device; what has no kernel is torch's operations."""

    def _lower(self, flag: Tensor, bad: Tensor, places: Tensor | None = None) -> None:
        flag_bad(flag, bad.contiguous(), places)

    def exp(self, tokens: Tokens, x: Tensor) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        exp_values(x, out)
        return out

    # ---- exact sums

    def _words(
        self, tokens: Tokens, first: Tensor, second: Tensor, centre: Centre | None
    ) -> Tensor:
        """Those of the exact sums of this rank."""
        words = torch.zeros(words_of(centre is not None), dtype=torch.int64, device=self.device)
        exact_sums(first, second, tokens.mask, words=words, flag=self.flag(), centre=centre)
        return words

    def _means(self, words: Tensor, number: int) -> Tensor:
        means = torch.empty(number, dtype=torch.float64, device=self.device)
        exact_means(words, centred=number == 3, out=means)
        return means

    def exact_means(
        self, tokens: Tokens, first: Tensor, second: Tensor, reduce: Reduce
    ) -> ExactMeans:
        words = reduce(self._words(tokens, first, second, None))
        means = self._means(words, 2)
        numbers: tuple[Any, Any, Any] = (means[0], means[1], words[-1])
        return ExactMeans(*numbers, (0, 0), -1)

    def _spread(
        self, tokens: Tokens, means: tuple[Tensor, Tensor], above: float, reduce: Reduce
    ) -> Spread:
        products = torch.empty_like(tokens.logp, dtype=torch.float64)
        centre = Centre(*means, above, products)
        words = reduce(self._words(tokens, tokens.advantages, tokens.logp, centre))
        mean, correlation, share = self._means(words, 3).unbind()
        return Spread(mean, correlation, share, products)

    # ---- the loss

    def outputs(
        self, metrics: tuple[tuple[int, bool], ...], sums: Tensor, total: Any, *, wide: bool
    ) -> tuple[Tensor, Tensor]:
        loss = torch.empty((), dtype=torch.float64 if wide else torch.float32, device=self.device)
        values = torch.empty(len(metrics), dtype=torch.float32, device=self.device)
        total = sums[SUMS.index("tokens")] if total is None else total
        loss_outputs(sums, metrics, total, loss=loss, metrics=values)
        return loss, values

    def loss(
        self, tokens: Tokens, params: Any, terms: LossTerms, *, entropy: bool, policy: bool
    ) -> LossValues:
        logp = tokens.logp
        parts = torch.empty(ADDED, programs_of(len(logp)), dtype=torch.float64, device=self.device)
        values = LossValues(
            torch.empty(len(SUMS), dtype=torch.float64, device=self.device),
            torch.empty_like(logp),
            torch.empty_like(logp) if entropy else None,
            torch.empty_like(logp, dtype=torch.float64) if policy else None,
        )
        with watched(OP, self.device) as flag:
            token_loss(
                tokens, params, terms, g_logp=values.g_logp, g_entropy=values.g_entropy,
                g_policy=values.g_policy, parts=parts, flag=flag,
            )  # fmt: skip
            loss_sums(parts, values.sums)
        return values


@functools.cache
def triton_tokens(device: str) -> TritonTokens:
    """Those of a device."""
    return TritonTokens(torch.device(device))
