"""A vocabulary in parts: how states of parts merge, and the ops on two and three processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logitless import _core, reference
from tests.support.tolerances import assert_bitwise_equal
from tests.support.workers.ranks import run_ranks

torch = pytest.importorskip("torch")

WORKERS = ("parallel", "sample", "sparse", "masks", "adapter", "divergence", "waits")
# Processes that import torch and make some ten thousand small products.
SECONDS = 400


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("worker", WORKERS)
def test_ranks_with_parts_of_the_vocabulary_are_one(
    worker: str, world: int, tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    run_ranks(f"vocab.{worker}", [[str(rank), str(world), store] for rank in range(world)], SECONDS)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_a_call_asks_the_other_ranks_once(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    run_ranks("collectives", [[str(rank), "2", store] for rank in range(2)], SECONDS)


def state_of(
    z: np.ndarray,  # [n, V of the piece] float64, already scaled
    targets: np.ndarray,  # [n]
    start: int,
    scale: np.ndarray,  # [n]
) -> np.ndarray:
    """[n, 8] by definition: the moments of the piece, y of the target, the first of the largest."""
    state = np.zeros((len(z), 8))
    state[:, 0], state[:, 6], state[:, 7] = -np.inf, np.nan, -1
    for row, (y, target) in enumerate(zip(z / scale[:, None], targets - start, strict=True)):
        if y.size and np.isfinite(y).any():
            state[row, :6] = (y.max(), *reference.moments(y * scale[row]))
            state[row, 7] = start + np.argmax(y)
        if 0 <= target < y.size:
            state[row, 6] = y[target]
    return state


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_merged_states_are_those_of_the_whole(data: st.DataObject) -> None:
    """Any cuts, empty pieces and impossible tokens, in the core and in torch."""
    from logitless.backends.row_kernels.states import merge_states

    n, vocab = 4, data.draw(st.integers(1, 40))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    spread = data.draw(st.sampled_from([0.0, 1.0, 30.0, 1000.0]))
    z = rng.standard_normal((n, vocab)) * spread
    z[rng.random((n, vocab)) < 0.3] = -np.inf
    z[:, rng.integers(vocab)] = 0.5
    targets, scale = rng.integers(0, vocab, n), rng.random(n) + 0.5
    cuts = sorted(data.draw(st.lists(st.integers(0, vocab), max_size=3)))
    ends = list(zip([0, *cuts], [*cuts, vocab], strict=True))
    pieces = np.stack([state_of(z[:, a:b], targets, a, scale) for a, b in ends])
    expected = state_of(z, targets, 0, scale)
    merged = np.empty((n, 8))
    _core.rows.Rows(n, row_scale=scale).merge(pieces, merged)
    np.testing.assert_allclose(merged, expected, rtol=1e-12, atol=1e-13)
    ours = merge_states(torch.from_numpy(pieces), torch.from_numpy(scale))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12, atol=1e-13)


def test_what_is_wrong_in_a_piece_is_wrong_in_the_whole() -> None:
    """A NaN, an infinity and nothing finite are told from the merged state as from one pass."""
    from logitless.backends.row_kernels.states import merge_states

    fine, empty = state_of(np.array([[1.0, 2.0]]), np.array([0]), 0, np.ones(1)), np.zeros((1, 8))
    empty[0, 0], empty[0, 6], empty[0, 7] = -np.inf, np.nan, -1
    for poison, message in ((np.nan, "a NaN"), (np.inf, r"a \+inf"), (-np.inf, "no finite logit")):
        rows = _core.rows.Rows(1, targets=np.zeros(1, np.int64))
        bad = np.empty((1, 8))
        rows.forward(np.array([[-np.inf, poison, -np.inf]], np.float32), bad)
        others = [empty] if poison == -np.inf else [empty, fine]
        for other in others:
            for order in ((bad, other), (other, bad)):
                pieces, merged = np.stack(order), np.empty((1, 8))
                rows.merge(pieces, merged)
                by_torch = merge_states(torch.from_numpy(pieces), 1.0)
                for state in (merged, by_torch.numpy()):
                    with pytest.raises(ValueError, match=f"row 0: .*{message}"):
                        rows.finalize(
                            state, 3, logp=np.empty(1), entropy=np.empty(1), lse=np.empty(1)
                        )


def test_the_empty_piece_is_the_identity() -> None:
    z = np.array([[0.3, -1.0, 2.0]])
    whole = state_of(z, np.array([1]), 0, np.ones(1))
    nothing = state_of(z[:, :0], np.array([1]), 0, np.ones(1))
    for pieces in ([nothing, whole, nothing], [whole]):
        merged = np.empty((1, 8))
        _core.rows.Rows(1).merge(np.stack(pieces), merged)
        assert_bitwise_equal(merged, whole)


def test_a_tie_keeps_the_earlier_column() -> None:
    z = np.full((1, 6), 2.5)
    pieces = np.stack([state_of(z[:, a : a + 2], np.array([0]), a, np.ones(1)) for a in (0, 2, 4)])
    merged = np.empty((1, 8))
    _core.rows.Rows(1).merge(pieces, merged)
    assert merged[0, 7] == 0
