"""Public op: draw one token per row from softmax(z) of hidden x weight, without its logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from logitless.ops.arrays import (
    check_dtype,
    check_head,
    check_shape,
    check_weight,
    framework,
    shape_of,
)
from logitless.ops.options import HeadOptions, not_yet
from logitless.ops.vocab_parallel import Facts, Meeting, fingerprint, head_facts


class Sample(NamedTuple):
    """What was drawn, one per row."""

    token: Any  # [N] int64
    logp: Any  # [N] nats: of the drawn token, in the numerics of linear_token_stats
    entropy: Any  # [N] nats


def linear_sample(
    hidden: Any,  # [N, H]
    weight: Any,  # [V, H]
    *,
    temperature: Any = 1.0,  # float, or [N]
    softcap: float | None = None,
    logit_scale: float = 1.0,
    bias: Any = None,  # [V]
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int,
    step: int,
    row_ids: Any,  # [N] int64
    vocab_group: Any = None,
    vocab_start: int = 0,
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

    torch tensors on the CPU; never differentiable. Raises ValueError or TypeError naming the
    argument, and ValueError naming the first row with a NaN, a +inf or no finite logit.
    """
    import torch

    op = "linear_sample"
    meeting = Meeting(op, vocab_group, vocab_start)
    for name, value in (("top_k", top_k), ("top_p", top_p)):
        if value is not None:
            raise not_yet(name, value)
    for name, number in (("seed", seed), ("step", step)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise ValueError(f"{op}: {name} must be an int >= 0, got {number!r}")
    with meeting:
        weight, bias = meeting.local("weight", weight), meeting.local("bias", bias)
        head = HeadOptions(temperature, softcap, logit_scale, bias)
        if framework(op, hidden=hidden, weight=weight, row_ids=row_ids, **head.arrays) != "torch":
            raise TypeError(f"{op}: hidden must be a torch tensor, got a NumPy array")
        n, vocab = len(hidden), check_weight(op, hidden, weight)
        check_shape(op, "hidden", hidden, "[N, H]", (n, shape_of(weight)[1]))
        check_shape(op, "row_ids", row_ids, "[N]", (n,))
        check_dtype(op, "row_ids", row_ids, "int64")
        check_head(op, head, "[N]", (n,), vocab, sharded=bool(meeting))
        if hidden.device.type != "cpu":
            raise NotImplementedError(
                f"{op}: draws on the CPU only, got hidden on {hidden.device}; pass hidden.cpu() and"
                " weight.cpu(), or draw there from logits: torch.multinomial((hidden @ weight.T)"
                ".softmax(-1), 1), scored by linear_token_stats"
            )
        if not 0 <= step < 1 << 43:
            raise ValueError(f"{op}: step must be below 2^43, got {step}")

    def same() -> Facts:
        return (
            *head_facts(head),
            ("the shape of hidden", list(shape_of(hidden))),
            ("the dtype", str(hidden.dtype)),
            ("row_ids (their checksum)", fingerprint(row_ids)),
            ("seed", seed),
            ("step", step),
        )

    shard = meeting.shard(vocab, same)
    with torch.no_grad():
        hidden, weight, row_ids = hidden.detach(), weight.detach(), row_ids.contiguous()
        if not meeting:
            return _draw(op, hidden, weight, head, seed, step, row_ids)
        from logitless.ops.sharded_sample import draw_sharded

        token, out = draw_sharded(op, hidden, weight, head, seed, step, row_ids, shard)
        return Sample(token, out["logp"], out["entropy"])


def _draw(
    op: str, hidden: Any, weight: Any, head: HeadOptions, seed: int, step: int, row_ids: Any
) -> Sample:
    import torch

    from logitless.ops.outputs import DIFFERENTIABLE, empty_outputs, flat_head
    from logitless.ops.plan import plan
    from logitless.ops.rows import SAMPLE_STATE, STATE, Rows
    from logitless.ops.tiles import Tiles

    n, vocab = len(hidden), len(weight)
    tiling = plan(n, hidden.shape[1], vocab, hidden.dtype, backward=False)
    tiles = Tiles(tiling.rows, tiling.columns, 0, hidden.dtype, 0)
    bias, row_scale, scale, pre, cap = flat_head(
        op, head, (n,), None, hidden.dtype == torch.float64
    )
    bias = None if bias is None else bias.detach()
    state = torch.empty(n, STATE, dtype=torch.float64)
    best = torch.empty(n, SAMPLE_STATE, dtype=torch.float64)
    scratch = tiles.scratch(n, hidden)
    rows = Rows(n, None, None, row_scale, scale, bias, pre, cap, torch.get_num_threads())
    parts = [(chunk, rows.part(chunk)) for chunk in tiles.chunks(n)]
    for start, stop in tiles.spans(vocab):
        for chunk, part in parts:
            tile = scratch[: part.n * (stop - start)].view(part.n, stop - start)
            torch.mm(hidden[chunk], weight[start:stop].t(), out=tile)
            part.sample(
                tile, state[chunk], best[chunk], row_ids=row_ids[chunk], seed=seed, step=step,
                start=start, first=start == 0,
            )  # fmt: skip
    # A row without a finite logit drew nothing; finish names it before it looks at the target.
    token = best[:, 1].to(torch.int64)
    out = empty_outputs(n, False, hidden)
    replace(rows, targets=token).finish(state, vocab, **{k: out[k] for k in DIFFERENTIABLE})
    return Sample(token, out["logp"], out["entropy"])
