"""Valid calls of the token kernels of a CUDA device, or of their emulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.fuzz import tokens
from tests.fuzz.case import Case
from tests.fuzz.memory import Rng
from tests.fuzz.rows import maybe

CLEAR = 2**63 - 1


def case(name: str, written: tuple[str, ...], **arguments: Any) -> Case:
    arguments.pop("threads", None)
    return Case(f"tokens.CudaTokens.{name}", {"own.device": 0, **arguments}, written)


def flag() -> Any:
    return np.full(1, CLEAR)


def number(rng: Rng, value: Any, dtype: str) -> Any:
    """A number, or an array of one."""
    return value if rng.integers(2) else np.full(1, value, dtype)


def value_sums(core: Any, rng: Rng) -> Case:
    given = tokens.value_sums(core, rng).arguments
    return case(
        "value_sums", ("words", "flag"), first=given["logp"], second=given["advantages"],
        mask=given["mask"], words=np.zeros(core.tokens.CUDA_SUM_WORDS, np.int64), flag=flag(),
    )  # fmt: skip


def sum_means(core: Any, rng: Rng) -> Case:
    words = rng.integers(-(2**40), 2**40, core.tokens.CUDA_SUM_WORDS)
    return case("sum_means", ("words", "means"), words=words, means=np.zeros(2))


def covariance_scores(core: Any, rng: Rng) -> Case:
    given = tokens.covariance_candidates(core, rng).arguments
    del given["most"]
    for name in ("mean_advantage", "mean_logp"):
        given["band"][name] = number(rng, given["band"][name], "f8")
    return case("covariance_scores", ("scores", "out_ids", "flag"), **given, flag=flag())


def ordered_scores(core: Any, rng: Rng) -> Case:
    given = tokens.ordered_scores(core, rng).arguments
    n = given["values"].size
    return case(
        "ordered_scores", ("scores", "out_ids"), **given, which=rng.random(n) < 0.8,
        ids=np.arange(n), out_ids=np.zeros(n, np.int64),
    )  # fmt: skip


def random_scores(core: Any, rng: Rng) -> Case:
    return case("random_scores", ("scores",), **tokens.random_scores(core, rng).arguments)


def _search(core: Any, rng: Rng) -> dict[str, Any]:
    given = tokens.radix_histogram(core, rng).arguments
    n = given["ids"].size
    return {
        "scores": given["scores"], "ids": np.where(rng.random(n) < 0.1, -1, given["ids"]),
        "k": number(rng, int(rng.integers(0, n + 2)), "i8"),
        "bins": np.zeros((tokens.LEVELS, tokens.BINS), np.int64),
        "states": np.zeros((tokens.LEVELS + 1, 4), np.int64),
    }  # fmt: skip


def radix_levels(core: Any, rng: Rng) -> Case:
    last = int(rng.integers(0, tokens.LEVELS + 1))
    return case(
        "radix_levels", ("bins", "states"), **_search(core, rng), first=0, last=last,
        exact=bool(rng.integers(2)),
    )  # fmt: skip


def radix_take(core: Any, rng: Rng) -> Case:
    given = _search(core, rng)
    taken = np.zeros(given["ids"].size, np.bool_)
    written = ("bins", "states", "taken", "flag")
    return case("radix_take", written, **given, taken=taken, flag=flag())


def members(core: Any, rng: Rng) -> Case:
    return case("members", ("out",), **tokens.members(core, rng).arguments)


def unique_ids(core: Any, rng: Rng) -> Case:
    n = tokens.count(rng)
    table = np.zeros(n + 1 + int(rng.integers(0, n + 1)), np.int32)
    return case(
        "unique_ids", ("table", "flag"), ids=rng.integers(-1, 2 * n + 1, n),
        mask=rng.random(n) < 0.8, table=table, flag=flag(),
    )  # fmt: skip


def flag_tokens(core: Any, rng: Rng) -> Case:
    n = tokens.count(rng)
    good, places = rng.random(n) < 0.99, maybe(rng, rng.permutation(n))
    return case("flag_tokens", ("flag",), good=good, places=places, flag=flag())


def sort_ids(core: Any, rng: Rng) -> Case:
    n = tokens.count(rng)
    return case(
        "sort_ids", ("found", "room", "out"), ids=rng.integers(-1, n + 1, n),
        found=np.zeros(1, np.int64), room=np.zeros(2 * n, np.int64), out=np.zeros(n, np.int64),
    )  # fmt: skip


def covariance_sums(core: Any, rng: Rng) -> Case:
    given = tokens.value_sums(core, rng).arguments
    return case(
        "covariance_sums", ("scores", "words", "flag"), logp=given["logp"],
        advantages=given["advantages"], mask=given["mask"],
        mean_advantage=number(rng, 0.1, "f8"), mean_logp=number(rng, -1.0, "f8"), above=1.0,
        scores=np.zeros(given["logp"].size, np.int64),
        words=np.zeros(core.tokens.COVARIANCE_WORDS, np.int64), flag=flag(),
    )  # fmt: skip


def covariance_means(core: Any, rng: Rng) -> Case:
    words = rng.integers(-(2**40), 2**40, core.tokens.COVARIANCE_WORDS)
    return case("covariance_means", ("out",), words=words, out=np.zeros(3))


def quantile_levels(core: Any, rng: Rng) -> Case:
    given, searches = tokens.radix_histogram(core, rng).arguments, core.tokens.QUANTILES
    half, n = tokens.LEVELS // 2, given["scores"].size
    return case(
        "quantile_levels", ("bins", "states", "out"), scores=given["scores"],
        count=np.full(1, int(rng.integers(0, n + 2))), shares=tuple(rng.random(searches)),
        bins=np.zeros((half, searches, tokens.BINS), np.int64),
        states=np.zeros((half, searches, 4), np.int64), out=np.zeros(searches),
        first=0, last=int(rng.integers(0, half + 2)),
    )  # fmt: skip


def collect_numbers(core: Any, rng: Rng) -> Case:
    n = int(rng.integers(0, core.tokens.MOST_NUMBERS + 1))
    numbers = [float(rng.normal()) for _ in range(n)]
    return case("collect_numbers", ("out",), numbers=numbers, out=np.zeros(n))


def count_shares(core: Any, rng: Rng) -> Case:
    return case(
        "count_shares", ("inverse", "part"), count=np.full(1, int(rng.integers(0, 99))),
        fraction=float(rng.random()), inverse=maybe(rng, np.zeros(1)),
        part=maybe(rng, np.zeros(1, np.int64)),
    )  # fmt: skip


def loss_outputs(core: Any, rng: Rng) -> Case:
    known = int(rng.integers(1, 20))
    metrics = [(int(rng.integers(known)), bool(rng.integers(2))) for _ in range(known)]
    return case(
        "loss_outputs", ("loss", "out"), sums=rng.normal(size=known), tokens=known - 1,
        total=maybe(rng, number(rng, 9, "i8")), metrics=metrics,
        loss=np.zeros(1, str(rng.choice(["f4", "f8"]))), out=np.zeros(known, np.float32),
    )  # fmt: skip


def fold_sequences(core: Any, rng: Rng) -> Case:
    n, sequences = tokens.count(rng), int(rng.integers(0, 5))
    ends = np.sort(rng.integers(0, n + 1, sequences))
    return case(
        "fold_sequences", ("out",), ends=ends, mask=rng.random(n) < 0.8, values=rng.normal(size=n),
        largest=bool(rng.integers(2)), out=np.zeros(sequences),
    )  # fmt: skip


def exp(core: Any, rng: Rng) -> Case:
    return case("exp", ("out",), **tokens.exp(core, rng).arguments)


def token_loss(core: Any, rng: Rng) -> Case:
    given = tokens.token_loss(core, rng)
    n = given.arguments["logp"].size
    for name in ("weight", "mean_advantage", "mean_logp", "log_low", "log_high"):
        if given.arguments[name] is not None:
            given.arguments[name] = number(rng, given.arguments[name], "f8")
    blocks = np.zeros(-(-n // core.tokens.LOSS_TOKENS) * core.tokens.LOSS_SUMS)
    written = (*given.written, "blocks", "flag")
    return case("token_loss", written, **given.arguments, blocks=blocks, flag=flag(), stream=0)


MAKERS: dict[str, Callable[[Any, Rng], Case]] = {
    "tokens.CudaTokens.__init__": lambda core, rng: Case(
        "tokens.CudaTokens.__init__", {"device": 0}
    ),
    **{
        f"tokens.CudaTokens.{maker.__name__}": maker
        for maker in (
            value_sums, sum_means, covariance_scores, ordered_scores, random_scores, radix_levels,
            radix_take, members, unique_ids, flag_tokens, sort_ids, covariance_sums,
            covariance_means, quantile_levels, collect_numbers, count_shares, loss_outputs,
            fold_sequences, exp, token_loss,
        )
    },
}  # fmt: skip
