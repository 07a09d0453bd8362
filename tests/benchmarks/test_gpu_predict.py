"""The model of times on a GPU, and its committed table."""

from __future__ import annotations

import inspect
import json

import pytest

pytest.importorskip("torch")


import logitless as ll
from benchmarks.gpu.predict import model as predict
from benchmarks.gpu.predict import table as predicted
from logitless.backends.base import REQUIRES
from logitless.backends.gpus import GPUS
from tests.support.paths import ROOT

SHAPES = [
    predict.Shape(*shape)
    for shape in (
        (8192, 4096, 151_936), (8192, 4096, 131_072), (32_768, 4096, 151_936),
        (32_768, 4096, 131_072), (8192, 2048, 151_936), (8192, 1024, 151_936),
    )
]  # fmt: skip
# Milliseconds on an H200, as they were predicted before any of this was built.
TABLE = {
    "forward": (13.8, 11.9, 55.0, 47.4, 7.2, 4.0),
    "forward, float32 logits": (14.8, 12.7, 58.6, 50.5, 8.1, 4.7),
    "forward, fused": (17.7, 15.3, 70.7, 61.0, 9.5, 5.4),
    "forward + backward, all kept": (41.2, 35.6, 164.8, 142.1, 21.6, 11.7),
    "forward + backward, recomputed": (55.7, 48.1, 222, 192, 29.2, 15.9),
    "forward + backward in 1 GiB": (51.6, 44.0, 226, 195, 26.6, 14.3),
    "forward + backward, 20% of rows": (20.4, 17.6, 80.9, 69.8, 10.8, 6.1),
    # less than 19.8, 17.3, ...: logits of dense rows are gathered, not made again
    "forward + backward, tail_mass 1e-3": (18.6, 16.2, 72.4, 63.1, 10.0, 5.7),
}
WIDTHS = (1536, 4224, 8448, 16_896, 33_792, 151_936)
OVER_BARE = {
    1024: (0.68, 0.73, 0.81, 0.82, 0.83, 0.84),
    2048: (0.80, 0.81, 0.89, 0.90, 0.91, 0.91),
    4096: (0.88, 0.86, 0.94, 0.95, 0.95, 0.95),
}
IN_CACHE = {1024: 0.71, 2048: 0.82, 4096: 0.89}
H200 = predict.MACHINES["H200"]


@pytest.mark.parametrize("op", TABLE)
def test_the_model_gives_its_table(op: str) -> None:
    for expected, shape in zip(TABLE[op], SHAPES, strict=True):
        found = 1e3 * predicted.OPS[op][0](H200, shape)
        # Of the last digit: these were read off a table.
        digit = 1.0 if expected > 190 else 0.1
        assert found == pytest.approx(expected, abs=digit), shape


def test_products_and_passes_of_the_table() -> None:
    products = [1e3 * predict.product(H200, shape) for shape in SHAPES]
    assert products == pytest.approx([12.9, 11.1, 51.6, 44.5, 6.45, 3.23], abs=0.05)
    passes = [1e3 * predict.one_pass(H200, shape) for shape in SHAPES]
    assert passes == pytest.approx([0.62, 0.54, 2.49, 2.15, 0.62, 0.62], abs=0.006)
    shares = [round(100 * predict.kept_share(H200, shape)) for shape in SHAPES]
    assert shares == [27, 31, 3, 3, 29, 31]


@pytest.mark.parametrize("width", OVER_BARE)
def test_the_model_gives_its_table_by_tile_width(width: int) -> None:
    shape = predict.Shape(8192, width, 151_936)
    found = [predict.over_bare(H200, shape, columns) for columns in WIDTHS]
    assert found == pytest.approx(OVER_BARE[width], abs=0.0051)
    cached = predict.over_bare(H200, shape, WIDTHS[0], in_cache=True)
    assert cached == pytest.approx(IN_CACHE[width], abs=0.0051)


def test_every_header_says_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    predicted.main(["--machine", "all", "--dtype", "float32", "--rows", "100"])
    text = capsys.readouterr().out
    assert text.count("predicted for ") == text.count("\npredicted  ") == len(predict.MACHINES)
    predicted.main(["--json", "--op", "forward"])
    found = json.loads(capsys.readouterr().out)
    assert found["predicted"]["H200"]["forward"]["ms"] == pytest.approx(13.8, abs=0.05)
    # A floor is one: whatever the op, machine and shape.
    for machine in predict.MACHINES.values():
        for shape in (*SHAPES, predict.Shape(1, 8, 300, "float32")):
            assert all(p.seconds >= p.floor > 0 for p in predicted.predict(machine, shape))
    with pytest.raises(SystemExit):
        predicted.main(["--rows", "0"])


def test_every_op_of_the_library_is_predicted() -> None:
    """And every option that a backend may lack; what is left out says why."""
    served = {name for op in predicted.OPS.values() for name in op.serves.split()}
    functions = {name for name in ll.__all__ if inspect.isfunction(getattr(ll, name))}
    assert predicted.UNTIMED.keys() == functions - served
    assert served == functions - predicted.UNTIMED.keys() | REQUIRES.keys() | {"adapter"}


def test_the_committed_table_is_what_the_model_says(capsys: pytest.CaptureFixture[str]) -> None:
    """python -m benchmarks.gpu.predict --machine all --markdown > benchmarks/results/..."""
    words = predicted.COMMAND.split()
    assert words[:3] == ["python", "-m", "benchmarks.gpu.predict"]
    predicted.main(words[3:-2])
    assert capsys.readouterr().out == (ROOT / words[-1]).read_text()


@pytest.mark.parametrize("name", predict.MACHINES)
def test_the_planner_rests_on_the_same_numbers(name: str) -> None:
    """And its plainer model gives nearly the same times."""
    ours, machine = GPUS[name], predict.MACHINES[name]
    assert {dtype: ours.flops[dtype] for dtype in machine.flops} == machine.flops
    assert (ours.stream, ours.tile_bytes) == (machine.memory, machine.tile_bytes)
    assert (ours.launch, ours.column_quantum) == (predict.PAIR, predict.QUANTUM)
    shape = SHAPES[0]
    found = {p.op: p for p in predicted.planned(name, shape)}
    assert found.keys() == predicted.PLANNED.keys()
    assert all(p.seconds > p.floor for p in found.values())
    forward = predict.forward(machine, shape)
    assert found["forward, as planned"].seconds == pytest.approx(forward, rel=0.03)
    if GPUS[name].default_budget > 3 << 30:
        keep = predict.keep(machine, shape)
        assert found["forward + backward, as planned"].note == "keep, 8192 x 151936"
        assert found["forward + backward, as planned"].seconds == pytest.approx(keep, rel=0.03)
