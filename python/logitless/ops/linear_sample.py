"""Public op: draw one token per row from softmax(z) of hidden x weight, without its logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from logitless.inputs.adapter import adapter_kind, check_adapters
from logitless.inputs.arrays import (
    check_dtype,
    check_head,
    check_shape,
    check_weight,
    framework,
    shape_of,
)
from logitless.inputs.checks import whole
from logitless.inputs.naming import public
from logitless.inputs.options import ComputeOptions, LogitTransform
from logitless.inputs.records import changed
from logitless.inputs.sampling_mask import SamplingMask
from logitless.inputs.weights import refuse_special_weight
from logitless.ops.sampling.truncated import KeptSets, Truncation, sets_on
from logitless.ops.sharding.rendezvous import Facts, ShardRendezvous, fingerprint, head_facts, tail

if TYPE_CHECKING:
    from logitless.ops.head.adapter.low_rank import LowRank
    from logitless.ops.rows.arguments import Transform
    from logitless.ops.sampling.draw import Noise
    from logitless.ops.sampling.kept_bits import KeptBits
    from logitless.ops.sharding.shard import Shard


class _Drawn(NamedTuple):
    token: Any  # [N] int64
    logp: Any  # [N] nats: of the drawn token, in the numerics of linear_token_stats
    entropy: Any  # [N] nats


class Sample(_Drawn):
    """What was drawn, one per row: token, logp and entropy, these two of the whole softmax; and as
    attributes what it was drawn from."""

    # None: all of the vocabulary
    _sets: KeptSets | KeptBits | None = None
    _kept_logp: Any = None

    @property
    def sampling_mask(self) -> SamplingMask:
        """The tokens that each row could be drawn as, ascending; none of a row: all."""
        if self._sets is None:
            return SamplingMask.from_lists([()] * len(self.token))
        return SamplingMask(*self._sets.csr)

    @property
    def kept_logp(self) -> Any:
        """[N] nats: logp renormalised over those, as linear_token_stats(..., sampling_mask=) has
        it."""
        return self.logp if self._sets is None else self._kept_logp


class _TracedSample(Sample):
    """From a graph of torch.compile, which holds no sets."""

    @property
    def sampling_mask(self) -> SamplingMask:
        raise NotImplementedError(
            "linear_sample: sampling_mask in a graph of torch.compile is not built: draw outside "
            "of what is compiled"
        )

    @property
    def kept_logp(self) -> Any:
        return self.sampling_mask


@public
def linear_sample(
    hidden: Any,  # [N, H]
    weight: Any,  # [V, H]
    *,
    temperature: Any = 1.0,  # float, or [N]
    softcap: float | None = None,
    logit_scale: float = 1.0,
    bias: Any = None,  # [V]
    adapter: Any = None,  # (A [r, H], B [V, r], scale), or a list of such
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int,
    step: int,
    row_ids: Any,  # [N] int64
    vocab_group: Any = None,
    vocab_start: int = 0,
    memory_budget: int | str | None = None,
    logits_dtype: Any = None,
    batch_invariant: bool = False,
) -> Sample:
    """Sample a token per row in one pass over vocabulary tiles.

    Equivalent plain code::

        z = chain(hidden @ weight.T)                   # see token_stats
        token = torch.multinomial(z.softmax(-1), 1)    # with noise of its own, see below
        logp = z.log_softmax(-1).gather(-1, token)

    Each block of 2048 vocabulary entries scores its log-sum-exp plus Gumbel noise; the best score
    wins and the token is drawn inside that block by inverse CDF: exact, one pass, nothing kept.
    The noise is Philox(seed, step, row_ids[i], block): the same arguments give the same token
    wherever a row stands in the batch, up to the rounding of the product itself. Give every
    sequence its own row id and every position its own step.

    top_k, top_p, min_p: draw from the top_k largest z alone (of equal ones the smaller token), of
        these from the fewest largest whose share of their mass reaches top_p, of these from those
        with at least min_p times the largest's probability, renormalised: the order of Hugging
        Face. Exact, and the noise is a function of (seed, step, row_ids[i]) still. logp and entropy
        stay those of the whole softmax(z); `.sampling_mask` is the set of each row and `.kept_logp`
        the log-prob within it, bit for bit that of linear_token_stats(..., sampling_mask=) where a
        set's rows of weight are gathered. The largest 256 logits of a row (top_k: as many, at most
        1024) are kept on the way; a row whose set may be larger gets another product, with the
        other such rows, within the budget.

    memory_budget, logits_dtype, adapter: as in `linear_token_stats`.
    batch_invariant: token, logp and entropy of a row have the same bits whatever other rows the
        call has, and logp and entropy those of `linear_token_stats(..., batch_invariant=True)` on
        the same token. Without it the products of a batch of another size may round logits
        differently, and those of scoring do (docs/sampling.md has the numbers).

    vocab_group, vocab_start: as in `linear_token_stats`; every rank gets the token that one rank
        with the whole vocabulary would draw, up to the rounding of products of other shapes. Of
        rows that need another product for top_k or top_p all logits are sent.

    torch tensors on the CPU, or on a GPU with the compiled CUDA core: there of the same logits the
    same token, and nothing waits but `.sampling_mask`, once it is asked for. Whole rows are held
    for top_k, top_p and min_p there, as many at a time as the budget has room for, and no row gets
    another product; `.kept_logp` is that of the draw itself. Never differentiable. Raises
    ValueError or TypeError naming the argument, and ValueError naming the first row with a NaN, a
    +inf or no finite logit; on a GPU as `token_stats` does.
    """
    import torch

    from logitless.ops.head.adapter.low_rank import low_rank
    from logitless.ops.head.inputs import realised_dtype
    from logitless.ops.sampling.draw import Noise, chain_of, draw
    from logitless.ops.torch_op import backend_with

    op = "linear_sample"

    def call_kind() -> tuple[Any, ...]:
        return (
            tail(hidden),
            tail(weight, 2),
            temperature,
            softcap,
            logit_scale,
            bias,
            top_k,
            top_p,
            min_p,
            memory_budget,
            str(logits_dtype),
            batch_invariant,
            adapter_kind(adapter),
        )

    ranks = ShardRendezvous(op, vocab_group, vocab_start, call_kind)
    with ranks:
        weight, bias = ranks.local("weight", weight), ranks.local("bias", bias)
        head = LogitTransform(temperature, softcap, logit_scale, bias)
        compute = ComputeOptions(memory_budget, 0.0, logits_dtype, batch_invariant)
        truncation = Truncation(top_k, top_p, min_p)
        seed, step = whole("seed", seed, below=1 << 64), whole("step", step, below=1 << 43)
        _check(op, hidden, weight, head, row_ids, ranks.sharded)
        adapters = check_adapters(op, adapter, hidden, weight, ranks.local)
        backend = backend_with(op, hidden)
    noise = Noise(seed, step, row_ids.contiguous())

    def same() -> Facts:
        return (
            *head_facts(head),
            ("the shape of hidden", list(shape_of(hidden))),
            ("the dtype", str(hidden.dtype)),
            *compute.facts,
            ("the dtype of logits", str(realised_dtype(compute.logits_dtype, hidden, backend))),
            ("row_ids (their checksum)", fingerprint(row_ids)),
            # While torch.compile traces, these and their checksum are of no call.
            *(() if torch.compiler.is_compiling() else (("seed", seed), ("step", step))),
            ("top_k", top_k),
            ("top_p", top_p),
            ("min_p", min_p),
        )

    shard = ranks.shard(len(weight), same)
    hidden, weight = hidden.detach(), weight.detach()
    with torch.no_grad():
        chain = chain_of(op, head, hidden.dtype == torch.float64, backend)
        low = low_rank(op, adapters, hidden, None, compute) if adapters else None
        arguments = (backend, hidden, weight, chain, compute, truncation, noise, shard, low)
        if not torch.compiler.is_compiling():
            *found, sets = draw(*arguments)
            drawn = Sample(*found)
            drawn._sets = sets
            if isinstance(sets, KeptSets):
                drawn._kept_logp = _score(drawn.token, sets, *arguments)
            elif sets is not None:
                drawn._kept_logp = sets.logp
            return drawn
        from logitless.ops.sampling.op import sample

        kind = _TracedSample if truncation.limits(shard.vocab(len(weight))) else Sample
        return kind(*sample(*arguments))


def _score(
    token: Any,
    sets: KeptSets,
    backend: str,
    hidden: Any,
    weight: Any,
    chain: Transform,
    compute: ComputeOptions,
    _: Truncation,
    __: Noise,
    shard: Shard,
    low: LowRank | None,
) -> Any:
    """The log-prob within each row's set, by the way that training takes."""
    import torch

    from logitless.ops.head.inputs import HeadInputs, realised_dtype
    from logitless.ops.head.masked import set_statistics
    from logitless.ops.rows.arguments import RowArguments

    rows = RowArguments(token, None, *chain, backend)
    dtype = realised_dtype(compute.logits_dtype, hidden, backend)
    # what was drawn has been paid for already
    compute = changed(compute, memory_budget=None)
    inputs = HeadInputs(hidden, weight, rows, compute, dtype, (False,) * 3, shard, low)
    places = torch.arange(len(token), device=token.device)
    return set_statistics(inputs, sets_on(shard, len(weight), places, *sets.csr)).logp


def _check(
    op: str,
    hidden: Any,
    weight: Any,
    head: LogitTransform,
    row_ids: Any,
    sharded: bool,
) -> None:
    if framework(op, head.arrays, hidden=hidden, weight=weight, row_ids=row_ids) != "torch":
        raise TypeError(f"{op}: hidden must be a torch tensor, got a NumPy array")
    refuse_special_weight(op, weight, sharded=sharded)
    vocab = check_weight(op, hidden, weight)
    n = shape_of(hidden)[0]
    check_shape(op, "hidden", hidden, "[N, H]", (n, shape_of(weight)[1]))
    check_shape(op, "row_ids", row_ids, "[N]", (n,))
    check_dtype(op, "row_ids", row_ids, "int64")
    check_head(op, head, "[N]", (n,), vocab, sharded=sharded)
