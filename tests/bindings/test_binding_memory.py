"""How the compiled core takes memory: through DLPack, read-only or not, masks, and in threads."""

from __future__ import annotations

import mmap
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import logitless as ll
from logitless import _core
from logitless.backends.token_kernels.protocol import SUMS
from tests.fuzz.memory import LIES, Exporter, Liar

# ---- what an object says of its memory


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_lies_are_noticed(lie: dict[str, Any]) -> None:
    for versioned in {lie.get("versioned", True), lie.get("versioned", False)}:
        liar = Exporter(np.zeros(4), **{**lie, "versioned": versioned})
        with pytest.raises((ValueError, TypeError), match=r"^x"):
            _core.tokens.exp(liar, np.zeros(4))


def test_objects_that_are_no_arrays() -> None:
    for answer, error in (
        (None, TypeError),
        (5, TypeError),
        (object(), TypeError),
        (BufferError("not today"), BufferError),
        (KeyError("odd"), KeyError),
    ):
        with pytest.raises(error):
            _core.tokens.exp(Liar(answer), np.zeros(4))
    for thing in (None, 3, "text", [1.0]):
        with pytest.raises(TypeError, match="x must be an array with __dlpack__"):
            _core.tokens.exp(thing, np.zeros(4))


@pytest.mark.parametrize("versioned", [True, False])
def test_honest_objects_are_taken(versioned: bool) -> None:
    x, out = np.array([0.0, 1.0]), np.zeros(2)
    _core.tokens.exp(Exporter(x, versioned=versioned), Exporter(out, versioned=versioned))
    np.testing.assert_allclose(out, np.exp(x))


class Told(torch.Tensor):
    """A tensor that has its own word on how it is exported."""

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("not today")


def test_a_derived_type_is_asked_by_its_own_method() -> None:
    """A tensor itself is asked in C, which a derived type has inherited."""
    x, out = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    _core.tokens.exp(x, out)
    torch.testing.assert_close(out, x.exp())
    with pytest.raises(BufferError, match="not today"):
        _core.tokens.exp(x.as_subclass(Told), out)


def test_what_c_refuses_is_refused_in_words() -> None:
    with pytest.raises(BufferError, match=r"layout other than torch\.strided"):
        _core.tokens.exp(torch.zeros(4).to_sparse(), np.zeros(4))
    with pytest.raises((BufferError, RuntimeError), match=r"meta|device"):
        _core.tokens.exp(torch.zeros(4, device="meta"), np.zeros(4))


def test_a_tensor_stays_while_its_memory_is_used() -> None:
    rows = _core.rows.Rows(3, targets=torch.tensor([0, 1, 2]), threads=1)
    state = np.zeros((3, 8))
    expected = np.zeros((3, 8))
    logits = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    _core.rows.Rows(3, targets=np.arange(3), threads=1).forward(logits, expected)
    # memory of the same size, which takes the place of what was let go
    others = [torch.full((3,), 99) for _ in range(100)]
    rows.forward(torch.from_numpy(logits), state)
    assert len(others) == 100
    np.testing.assert_array_equal(state, expected)


# ---- memory that is not to be written


def test_a_read_only_array_is_read_but_not_written() -> None:
    x, out = np.arange(64.0), np.zeros(64)
    x.setflags(write=False)
    _core.tokens.exp(x, out)
    text = b"A" * 512
    for array in (np.frombuffer(text, np.float64), x):
        with pytest.raises((ValueError, BufferError), match="read"):
            _core.tokens.exp(np.zeros(64), array)
    assert text == b"A" * 512
    with pytest.raises(ValueError, match="read-only"):
        _core.tokens.exp(np.zeros(64), Exporter(x))


def unwritable(path: Path) -> torch.Tensor:
    """[8, 4096] of a file that is mapped for reading."""
    path.write_bytes(bytes(4 * 8 * 4096))
    with warnings.catch_warnings():
        # torch has a word of its own for it
        warnings.simplefilter("ignore")
        return torch.from_numpy(np.memmap(path, np.float32, mode="r", shape=(8, 4096)))


def system_tells() -> bool:
    """Linux from 5.14 on says whether a page may be written."""
    try:
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            page.madvise(23)
    except (AttributeError, OSError, ValueError):
        return False
    return True


@pytest.mark.skipif(not system_tells(), reason="the system does not tell what may be written")
def test_a_read_only_mapping_is_not_written(tmp_path: Path) -> None:
    """torch knows nothing of it: the system is asked."""
    tensor = unwritable(tmp_path / "zeros")
    with pytest.raises(ValueError, match="read-only"):
        _core.rows.exp2(torch.zeros(64), tensor[0, :64])
    # what NumPy makes of the tensor says that it may be written
    with pytest.raises(ValueError, match="read-only"):
        _core.rows.exp2(np.zeros(64, np.float32), tensor[0, :64].numpy())
    assert not tensor.any()


@pytest.mark.skipif(not system_tells(), reason="the system does not tell what may be written")
def test_inplace_backward_into_a_read_only_mapping(tmp_path: Path) -> None:
    class Read(torch.autograd.Function):
        """Gives the tensor out as a result of its own, which a leaf is not."""

        @staticmethod
        def forward(ctx: Any, like: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
            return tensor

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
            return gradient, None

    like = torch.zeros(8, 4096, requires_grad=True)
    read: Any = Read
    logits = read.apply(like, unwritable(tmp_path / "zeros"))
    targets = torch.zeros(8, dtype=torch.int64)
    stats = ll.token_stats(logits, targets, inplace_backward=True)
    with pytest.raises(ValueError, match=r"gradient.*read-only"):
        stats.logp.sum().backward()


# ---- masks


@pytest.mark.parametrize("byte", [2, 128, 255])
def test_every_byte_but_0_is_true(byte: int) -> None:
    rng = np.random.default_rng(5)
    n = 5000
    mask = rng.random(n) < 0.6
    odd = np.where(mask, byte, 0).astype(np.uint8).view(bool)
    logp, a, ids = rng.normal(size=n), rng.normal(size=n), rng.permutation(n)
    sums = [np.zeros(_core.tokens.SUM_WORDS, np.int64) for _ in range(2)]
    for which, out in zip((mask, odd), sums, strict=True):
        assert _core.tokens.value_sums(logp, a, which, out) == -1
    np.testing.assert_array_equal(*sums)
    assert sums[0][-1] == mask.sum()
    assert _core.tokens.repeated_id(ids, odd) is None
    targets, logits = np.zeros(9, np.int64), rng.normal(size=(9, 50))
    results = [ll.token_stats(logits, targets, mask=which[:9]).logp for which in (mask, odd)]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("control", ["drop_selected", "keep_selected", "penalise_selected"])
def test_selected_bytes(control: str) -> None:
    rng = np.random.default_rng(6)
    n = 1000
    selected, valid = rng.random(n) < 0.1, rng.random(n) < 0.8
    none = _core.tokens.KlEstimator.none
    reinforce = _core.tokens.Surrogate.__members__["reinforce"]
    params = _core.tokens.LossParams(
        surrogate=reinforce, constants=(), ratio_low=0.8, ratio_high=1.2,
        log_low=-0.2, log_high=0.2, ratio_dual=3.0, log_dual=1.1, positive=1.0, negative=1.0,
        control=getattr(_core.tokens.Control, control),
        penalty_estimator=_core.tokens.KlEstimator.k2, penalty_straight_through=False,
        kl_estimator=none, kl_straight_through=False, kl_weight=_core.tokens.KlWeight.none,
        entropy_target=0.0,
    )  # fmt: skip
    logp, a, reference = (rng.normal(size=n) for _ in range(3))
    results = []
    for byte in (1, 254):
        flags = [np.where(x, byte, 0).astype(np.uint8).view(bool) for x in (selected, valid)]
        gradient = np.zeros(n)
        sums = np.zeros(_core.tokens.LOSS_SUMS)
        _core.tokens.token_loss(
            logp=logp, old_logp=None, advantages=a, weights=None, entropy=None, kl_logp=None,
            selected=flags[0], g_logp=gradient, g_entropy=None, mean_advantage=0.0, mean_logp=0.0,
            grad_scale=1.0, params=params, mask=flags[1], weight=0.5, penalty_logp=reference,
            entropy_coefficient=0.0, kl_coefficient=0.0, penalty_coefficient=1.0, sums=sums,
        )  # fmt: skip
        found = dict(zip(SUMS, sums.tolist(), strict=True))
        assert found["selected"] == (selected & valid).sum()
        assert found["tokens"] == valid.sum()
        results.append((found, gradient))
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1], results[1][1])


# ---- threads


@pytest.mark.parametrize("first", ["", "import torch\n"], ids=["own team", "OpenMP's team"])
def test_what_a_thread_throws_is_raised(first: str) -> None:
    """Kept logits that hold a NaN are found while threads work. The next call works again."""
    code = first + textwrap.dedent("""
        import numpy as np
        from logitless import _core
        n = 64
        y = np.zeros((n, 4)); y[5] = np.nan
        kept = _core.topk.TopK(values=y, ids=np.zeros((n, 4), np.int32), threshold=np.zeros(n),
                               count=np.full(n, 4), margin=float("inf"))
        rows = _core.rows.Rows(n, targets=np.zeros(n, np.int64), threads=4)
        for _ in range(3):
            try:
                _core.topk.finalize(rows, np.zeros((n, 8)), kept)
            except ValueError as error:
                print(error)
        state = np.zeros((n, 8))
        rows.forward(np.zeros((n, 100), np.float32), state)
        print(state[:, 1].min())
    """)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[:4] == ["the kept logits hold a NaN"] * 3 + ["100.0"]
