"""The token kernels of any device in torch's operations: nothing waits, shapes are fixed, and the
tokens that are selected are the CPU's bit for bit."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from logitless.backends.row_kernels.errors import BAD_TOKEN, CLEAR, flag_of, lower, watched
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
from logitless.backends.token_kernels.torch_arrays import TorchArrays
from logitless.backends.token_kernels.torch_loss import token_loss
from logitless.backends.token_kernels.torch_numbers import (
    covariance,
    exp_of,
    from_ordered_bits,
    ordered_bits,
    random_keys,
)
from logitless.backends.token_kernels.torch_radix import search, taken
from logitless.backends.token_kernels.torch_sums import DIGITS, exact_digits, means_of
from logitless.backends.token_kernels.torch_terms import LossParams, ratio_clipped
from logitless.inputs.tokens import Tokens

# Whose wrong tokens these are.
OP = "policy_loss"


class DeviceArrays(TorchArrays):
    """What a caller gives comes to the device of the kernels."""

    # methods, which of the class there are functions
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def array(self, name: str, x: Tensor) -> Tensor:  # type: ignore[override]
        return TorchArrays.array(name, x).to(self.device)


class TorchTokens:
    """`TokenKernels` of a device. Candidates are all tokens of a call: where the id is -1, a token
    is none. Float64 values beyond 2^256, or all below 2^-256, are not scaled as on the CPU."""

    on_host = False
    xp: DeviceArrays

    def __init__(self, device: torch.device) -> None:
        self.device, self.xp = device, DeviceArrays(device)

    def flag(self) -> Tensor:
        return flag_of(OP, self.device)

    def done(self, op: str) -> None:
        with watched(op, self.device):
            pass

    def _lower(self, flag: Tensor, bad: Tensor, places: Tensor | None = None) -> None:
        places = torch.arange(len(bad), device=self.device) if places is None else places
        lower(flag, bad, places, BAD_TOKEN)

    def refuse(self, tokens: Tokens, good: Tensor, describe: Any) -> None:
        self._lower(self.flag(), ~good, tokens.places)

    def exp(self, tokens: Tokens, x: Tensor) -> Tensor:
        return exp_of(x)

    # ---- sequences

    def _fold(self, tokens: Tokens, values: Tensor, *, largest: bool = False) -> Tensor:
        """Always in the same order, which sums by scattered additions are not."""
        lengths, n = tokens.require_sequences().lengths, len(values)
        if not n:
            return values.new_zeros(len(lengths))
        # offsets that do not rise from 0 to n reach no other memory
        ends = lengths.clamp(min=0).cumsum(0).clamp(max=n)
        folded: Tensor = torch.segment_reduce(
            torch.where(tokens.mask, values, 0.0), "max" if largest else "sum",
            offsets=pad(ends, (1, 0)), unsafe=True, initial=0,
        )  # fmt: skip
        return folded

    def lengths(self, tokens: Tokens) -> Tensor:
        return self._fold(tokens, tokens.mask.double()).long()

    def sums(self, tokens: Tokens, values: Tensor) -> Tensor:
        return self._fold(tokens, values)

    def largest(self, tokens: Tokens, values: Tensor) -> Tensor:
        return self._fold(tokens, values, largest=True)

    def ranked(self, tokens: Tokens, values: Tensor, quantile: float) -> Tensor:
        sequences, lengths = tokens.require_sequences(), self.lengths(tokens)
        group = torch.where(tokens.mask, sequences.of_token, sequences.number)
        order = values.argsort()
        order = order[group[order].argsort(stable=True)]
        # torch multiplies an integer in float32
        places = lengths.cumsum(0) - lengths + (quantile * (lengths - 1).double()).long()
        sorted_values = torch.cat([values[order], values.new_zeros(1)])
        found = sorted_values[places.clamp(0, len(values))]
        return torch.where(lengths > 0, found, 0.0)

    def first_ids(self, tokens: Tokens) -> Tensor:
        sequences = tokens.require_sequences()
        none = torch.full((sequences.number,), CLEAR, dtype=torch.int64, device=self.device)
        ids = torch.where(tokens.mask, tokens.ids, CLEAR)
        return none.scatter_reduce(0, sequences.of_token, ids, "amin")

    # ---- sums over all tokens

    def total(self, tokens: Tokens, values: Tensor) -> Tensor:
        return torch.where(tokens.mask, values, 0.0).sum()

    def count(self, tokens: Tokens, which: Tensor | None) -> Tensor:
        found: Tensor = (tokens.mask if which is None else which & tokens.mask).sum()
        return found

    def _exact_sums(self, values: Tensor, tokens: Tokens, *counts: Tensor) -> Tensor:
        """Words that add up over ranks: the digits of values [m, n], how many tokens are true in
        each of `counts`, and the number of those that were added. Others that are valid are
        flagged."""
        good = values.isfinite().all(0)
        counted = tokens.mask & good
        self._lower(self.flag(), tokens.mask & ~good)
        numbers = torch.stack([counted & x for x in counts] + [counted]).sum(1)
        return torch.cat([exact_digits(values, counted).view(-1), numbers])

    def exact_means(
        self, tokens: Tokens, first: Tensor, second: Tensor, reduce: Reduce
    ) -> ExactMeans:
        words = reduce(self._exact_sums(torch.stack([first.double(), second.double()]), tokens))
        means = means_of(words[:-1].view(2, DIGITS), words[-1])
        numbers: tuple[Any, Any, Any] = (means[0], means[1], words[-1])
        return ExactMeans(*numbers, (0, 0), -1)

    # ---- ids

    def repeated_id(self, tokens: Tokens) -> None:
        """One is flagged, by the second token that has it."""
        ids = torch.where(tokens.mask & (tokens.ids >= 0), tokens.ids, -1)
        in_order = ids.sort(stable=True)
        later, before = in_order.values[1:], in_order.values[:-1]
        flag = self.flag()
        self._lower(flag, (later == before) & (later >= 0), in_order.indices[1:])
        self._lower(flag, tokens.mask & (tokens.ids < 0))

    def members(self, tokens: Tokens, ids: Tensor) -> Tensor:
        if not len(ids):
            return torch.zeros_like(tokens.ids, dtype=torch.bool)
        found: Tensor = ids[self.xp.search(ids, tokens.ids)] == tokens.ids
        return found

    # ---- candidates

    def covariances(
        self, tokens: Tokens, band: Band, old_logp: Tensor | None, most: Any
    ) -> tuple[Candidates, int]:
        logp, advantages = tokens.logp, tokens.advantages
        value = covariance(advantages, logp, (band.mean_advantage, band.mean_logp))
        inside = tokens.mask & (value > band.low) & (value < band.high)
        if old_logp is not None:
            self._lower(self.flag(), tokens.mask & ~old_logp.isfinite())
            inside = inside & ~ratio_clipped(logp.double() - old_logp, advantages, band)
        return self._candidates(tokens, inside, value), -1

    def ordered(self, tokens: Tokens, which: Tensor, values: Tensor) -> Candidates:
        return self._candidates(tokens, which, values)

    def _candidates(self, tokens: Tokens, which: Tensor, values: Tensor) -> Candidates:
        scores = torch.where(which, ordered_bits(values), 0)
        return Candidates(scores, torch.where(which, tokens.ids, -1))

    def shuffled(self, candidates: Candidates, seed: int, step: int) -> Candidates:
        return candidates._replace(scores=random_keys(candidates.ids, seed, step))

    def drawn(self, candidates: Candidates, permute: Any, k: Any) -> Tensor:
        """Waits: the host draws a permutation of the candidates, whose number it has to know."""
        ids: Tensor = candidates.ids[candidates.ids >= 0]
        return ids[torch.from_numpy(permute(len(ids))[: int(k)]).to(self.device)]

    def take_largest(self, candidates: Candidates, k: Any, reduce: Reduce) -> Tensor:
        """As many as candidates, -1 in place of each that is not taken."""
        return self._taken(candidates, k, reduce, torch.int64)

    def chosen(self, tokens: Tokens, candidates: Candidates, k: Any) -> Tensor:
        if k is None:
            return torch.as_tensor(candidates.ids >= 0)
        return self._taken(candidates, k, lambda values: values, torch.bool)

    def _taken(self, candidates: Candidates, k: Any, reduce: Reduce, dtype: torch.dtype) -> Tensor:
        """Which are (torch.bool), or their ids and -1 (torch.int64)."""
        which, repeated = taken(candidates, self._number(k), reduce)
        self._lower(self.flag(), repeated)
        return which if dtype == torch.bool else torch.where(which, candidates.ids, -1)

    def _number(self, k: Any) -> Tensor:
        """[1]"""
        if isinstance(k, Tensor):
            return k.view(1)
        return torch.full((1,), k, dtype=torch.int64, device=self.device)

    def kth_largest(self, candidates: Candidates, k: Any, reduce: Reduce) -> Any:
        """An array without dimensions."""
        among = candidates.ids >= 0
        found = search((candidates.scores,), among, self._number(k), reduce)
        return from_ordered_bits(found.words[0])[0]

    def extremes(
        self, tokens: Tokens, which: Tensor, values: Tensor, reduce: Reduce
    ) -> tuple[Any, Any]:
        """Arrays without dimensions."""
        running = self.ordered(tokens, which, values)
        number = reduce((running.ids >= 0).sum()[None])
        least, most = (self.kth_largest(running, k, reduce) for k in (number, 1))
        return least.where(number[0] > 0, 0.0), most.where(number[0] > 0, 0.0)

    def covariance_report(
        self,
        tokens: Tokens,
        means: tuple[Tensor, Tensor],
        number: Tensor,
        quantiles: tuple[float, ...],
        above: float,
        reduce: Reduce,
    ) -> CovarianceReport:
        a, lp = tokens.advantages.double() - means[0], tokens.logp.double() - means[1]
        values = torch.stack([a * a, lp * lp, a * lp])
        words = reduce(self._exact_sums(values, tokens, values[2] > above))
        beyond, count = words[-2:].unbind()
        of_a, of_lp, mean = means_of(words[:-2].view(3, DIGITS), count).unbind()
        spread = of_a.sqrt() * of_lp.sqrt()
        return CovarianceReport(
            mean,
            torch.where(spread > 0, mean / spread, 0.0),
            beyond.double() / count.clamp(min=1).double(),
            self._quantiles(tokens, values[2], number, quantiles, reduce),
        )

    def _quantiles(
        self,
        tokens: Tokens,
        values: Tensor,
        number: Tensor,
        quantiles: tuple[float, ...],
        reduce: Reduce,
    ) -> tuple[Tensor, ...]:
        """The smallest values of valid tokens, `number` on all ranks, that at least such a share of
        them does not exceed."""
        below = torch.stack([(q * number.double()).ceil().long() for q in quantiles])
        found = search((ordered_bits(values),), tokens.mask, number - below + 1, reduce)
        return from_ordered_bits(found.words[0]).unbind()

    # ---- the loss

    def outputs(
        self, metrics: tuple[tuple[int, bool], ...], sums: Tensor, total: Any, *, wide: bool
    ) -> tuple[Tensor, Tensor]:
        tokens = sums[SUMS.index("tokens")] if total is None else total
        divisor = tokens.double().clamp(min=1) if isinstance(tokens, Tensor) else max(tokens, 1)
        values = [sums[place] / (divisor if per_token else 1) for place, per_token in metrics]
        return sums[0].to(torch.float64 if wide else torch.float32), torch.stack(values).float()

    def params(self, fields: dict[str, Any]) -> Any:
        return LossParams(**fields)

    def loss(
        self, tokens: Tokens, params: Any, terms: LossTerms, *, entropy: bool, policy: bool
    ) -> LossValues:
        with watched(OP, self.device) as flag:
            values, bad = token_loss(tokens, params, terms, entropy=entropy, policy=policy)
            self._lower(flag, bad)
        return values


@functools.cache
def torch_tokens(device: str) -> TorchTokens:
    """Those of a device."""
    return TorchTokens(torch.device(device))
