"""The benchmark of trainers: spans, floors, and runs of a few tokens."""

from __future__ import annotations

import importlib.util
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from benchmarks.trainers import micro_batch, own_step, sizes, whole_step, workload  # noqa: E402
from benchmarks.trainers.models import (  # noqa: E402
    reward,
    toy_model,
    toy_prompts,
    toy_tokenizer,
)
from benchmarks.trainers.spans import (  # noqa: E402
    BESIDE,
    BODY,
    GENERATION,
    NAMES,
    OPTIMIZER,
    UPDATE,
    Meter,
    Spans,
    Step,
    watch_body,
)
from logitless.rl.policy.tokenizers import make_tokenizer  # noqa: E402

SMALL = workload.Workload("64", 301, prompts=2, group=4, length=5, minibatches=2, steps=1)
TINY = sizes.Sizes(vocab=301, hidden=64, tokens=24, rows=4, prompt=3)


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed: ./dev plugins has it")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def test_what_runs_inside_of_something_else_is_not_the_others() -> None:
    clock = Clock()
    spans = Spans(clock)
    with spans.of(UPDATE):
        clock.wait(1)
        with spans.of(GENERATION):
            clock.wait(2)
            with spans.of(None, BODY):
                clock.wait(4)
        clock.wait(8)
        # the rest of this phase
        spans.become(None, BODY)
        clock.wait(16)
    spans.become(OPTIMIZER, BESIDE)
    clock.wait(32)
    found = spans.shares()
    assert {k: v for k, v in found.items() if v} == {
        "update head": 9, "generation head": 2, "generation body": 4, "update body": 16,
        "optimizer": 32,
    }  # fmt: skip
    assert tuple(found) == NAMES
    spans.restart()
    assert not any(spans.shares().values())


def count_cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of calls of a CUDA that is not there; its peak is 7 MiB."""
    calls: list[str] = []

    def counted(name: str, answer: Any) -> Callable[[], Any]:
        def call() -> Any:
            calls.append(name)
            return answer

        return call

    answers = {
        "synchronize": None,
        "reset_peak_memory_stats": None,
        "max_memory_allocated": 7 << 20,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, counted(name, answer))
    return calls


def test_a_gpu_is_waited_for_and_its_memory_is_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_cuda(monkeypatch)
    meter = Meter("cuda")
    calls.clear()
    meter.begin()
    assert calls == ["reset_peak_memory_stats", *["synchronize"] * 2]
    with meter.spans.of(UPDATE):
        pass
    assert calls.count("synchronize") == 4
    meter.end()
    (step,) = meter.steps
    assert step.peak_bytes == 7 << 20 and calls[-2:] == ["synchronize", "max_memory_allocated"]
    assert sum(step.parts.values()) <= step.seconds


def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("it is there")
    for program, message in (
        (whole_step.main, "--device cuda: torch .* finds no CUDA device"),
        (micro_batch.main, "--device cuda: torch .* finds no CUDA device"),
        (lambda given: micro_batch.main(["--verl", *given]), "--verl runs on a CPU"),
    ):
        with pytest.raises(SystemExit):
            program(["--device", "cuda"])
        assert re.search(message, capsys.readouterr().err)


def test_an_error_leaves_no_phase_behind() -> None:
    clock = Clock()
    spans = Spans(clock)

    def broken() -> None:
        spans.push(None, BODY)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        spans.within(UPDATE, broken)()
    clock.wait(1)
    assert spans.shares()["rest"] == 1


def test_the_body_is_told_from_the_head_in_both_directions() -> None:
    """A body and a head that move the clock, forward and backward."""
    clock = Clock()
    function: Any = torch.autograd.Function
    module: Any = torch.nn.Module

    class Slow(function):
        @staticmethod
        def forward(ctx: Any, x: Any, forth: float, back: float) -> Any:
            clock.wait(forth)
            ctx.back = back
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            clock.wait(ctx.back)
            return grad, None, None

    class Body(module):
        def forward(self, x: Any) -> Any:
            return (Slow.apply(x, 1.0, 2.0),)

    body, spans = Body(), Spans(clock)
    watch_body(body, spans)
    with spans.of(UPDATE):
        out = Slow.apply(body(torch.ones(3, requires_grad=True))[0], 4.0, 8.0)
        clock.wait(16)
        out.sum().backward()
    found = spans.shares()
    assert (found["update body"], found["update head"]) == (3, 28)
    assert found["rest"] == 0


def test_the_products_of_the_floor_are_the_flops_it_states() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call = sizes.products(TINY)
        call.run(call.prepare())
    assert counter.get_total_flops() == sizes.flops(TINY)
    weight = 4 * TINY.vocab * TINY.hidden
    assert sum(sizes.moved(TINY).values()) == 3 * weight + 12 * TINY.tokens * TINY.hidden


def test_the_floor_of_a_step() -> None:
    """By hand: 2 prompts of 16 tokens, 4 answers of 5 tokens to each."""
    shape = workload.Shape(body=10, head=100, vocab=20, prompt_tokens=32, tokens=40)
    assert workload.flops(shape, SMALL) == {
        "generation body": 2 * 10 * 72, "generation head": 2 * 100 * 40,
        "update body": 6 * 10 * (128 + 40), "update head": 6 * 100 * 40,
    }  # fmt: skip
    assert workload.moved(shape, SMALL) == {
        "generation": 5 * 440, "update": 2 * 3 * 440, "optimizer": 2 * 7 * 440,
    }  # fmt: skip
    assert workload.resident(shape) == 16 * 110


def test_an_embedding_of_its_own_is_no_product() -> None:
    tied, apart = (toy_model(301, 64, tied=tied) for tied in (True, False))
    shapes = [workload.shape_of(model, 32, 40) for model in (tied, apart)]
    assert [shape.embedding for shape in shapes] == [0, 301 * 64]
    assert shapes[0].body == shapes[1].body
    needs, moves = ([f(shape, SMALL) for shape in shapes] for f in (workload.flops, workload.moved))
    assert needs[0] == needs[1] and moves[0]["generation"] == moves[1]["generation"]
    assert moves[1]["optimizer"] - moves[0]["optimizer"] == 2 * 7 * 4 * 301 * 64
    for model, shape in zip((tied, apart), shapes, strict=True):
        assert workload.resident(shape) == 16 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("way", [whole_step.OWN, "tail", "shared", "narrow", "parts"])
def test_a_step_of_a_saved_model(tmp_path: Path, way: str) -> None:
    toy_model(301, 64, tied=True).save_pretrained(tmp_path)
    make_tokenizer("bytes").save_pretrained(tmp_path)
    work = SMALL._replace(model=str(tmp_path), vocab=999)
    assert work.texts() == ["sum 10:", "sum 11:"]
    (step,), shape = whole_step.run(way, work)
    assert shape.prompt_tokens == len("sum 10:sum 11:") and (shape.head, shape.vocab) == (
        301 * 64,
        301,
    )
    assert step.parts["update head"] > 0


def test_a_toy_knows_its_words() -> None:
    tokenizer = toy_tokenizer(301)
    texts = toy_prompts(2, 16)
    ids = tokenizer(texts).input_ids
    assert [len(row) for row in ids] == [16, 16] and tokenizer.unk_token_id not in {
        *ids[0],
        *ids[1],
    }
    assert tokenizer.decode(ids[1]) == texts[1]
    assert len(tokenizer) == 301
    assert reward("w10 w11 w12") == pytest.approx(2 / 3) and reward("") == 0


def test_prompts_are_those_of_the_workload_each_step() -> None:
    task = own_step.Questions(SMALL)
    found = [prompt.text for prompt in task.prompts(random.Random(0), 2)]
    assert sorted(found) == sorted(SMALL.texts())


def check_steps(found: tuple[list[Step], workload.Shape], *, scores: bool) -> None:
    (step,), shape = found
    assert shape == workload.Shape(
        body=shape.body, head=301 * 64, vocab=301, prompt_tokens=2 * 16, tokens=shape.tokens
    )
    # an end token may be drawn
    assert 30 <= shape.tokens <= 8 * 5
    assert sum(step.parts.values()) == pytest.approx(step.seconds, rel=0.02)
    for name in ("generation body", "generation head", "update body", "update head", "optimizer"):
        assert step.parts[name] > 0, name
    for name in ("scoring body", "scoring head"):
        assert (step.parts[name] > 0) == scores, name
    assert step.cpu > 0 and step.peak_bytes > workload.resident(shape)


def test_a_step_of_the_own_trainer() -> None:
    check_steps(own_step.run(SMALL), scores=False)


@needs("trl")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", ["trl", "head", "loss"])
def test_a_step_of_trl(way: str) -> None:
    from benchmarks.trainers import trl_step

    check_steps(trl_step.run(way, SMALL), scores=True)


@needs("trl")
@pytest.mark.filterwarnings("ignore")
def test_a_step_of_trl_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but the GPU: the trainer is asked for none but the one that is there."""
    from benchmarks.trainers import trl_step

    calls = count_cuda(monkeypatch)
    asked: list[str] = []
    trainers: list[Any] = []
    made = trl_step.make_trainer

    def stays(*given: Any, **more: Any) -> Any:
        model = toy_model(*given, **more)

        def to(device: str) -> Any:
            asked.append(device)
            return model

        monkeypatch.setattr(model, "to", to)
        return model

    def kept(*given: Any) -> Any:
        trainers.append(made(*given))
        return trainers[-1]

    monkeypatch.setattr(workload, "toy_model", stays)
    monkeypatch.setattr(trl_step, "make_trainer", kept)
    (step,), shape = trl_step.run("head", SMALL._replace(device="cuda"))
    assert asked[0] == "cuda" and not trainers[0].args.use_cpu
    assert step.peak_bytes == 7 << 20 and calls.count("max_memory_allocated") == 2
    assert calls.count("synchronize") > 20 and shape.vocab == 301


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("trl_batch", marks=needs("trl")),
        pytest.param("verl_batch", marks=needs("verl")),
        pytest.param("verl_step", marks=needs("verl")),
    ],
)
def test_a_micro_batch(name: str) -> None:
    lines = micro_batch.measure(name, TINY, repeats=1, peaks=False)
    ways = micro_batch.setting(name).WAYS
    assert [line.way for line in lines] == [*ways, micro_batch.FLOOR]
    assert lines[0].of_trainer == lines[0].cpu_of_trainer == 1
    assert all(line.median > 0 and line.cpu > 0 for line in lines)
    printed = micro_batch.table(name, TINY, lines)
    assert all(shown in printed for shown in ways.values())
    json.dumps(micro_batch.as_json(TINY, lines))


def made_up(speed: Callable[[int], float]) -> Callable[[str, workload.Workload], whole_step.Round]:
    """A step of 2 seconds, a fifth of which is the head; this library's own takes half of that."""
    turns: dict[str, int] = {}
    shape = workload.Shape(10, 100, 20, 32, 40)

    def process(way: str, work: workload.Workload) -> whole_step.Round:
        turn = turns[way] = turns.get(way, -1) + 1
        seconds = speed(turn) * (1.0 if way == whole_step.OWN else 2.0)
        parts = dict.fromkeys(NAMES, 0.0) | {
            "update body": 0.8 * seconds, "update head": 0.2 * seconds
        }  # fmt: skip
        step = Step(seconds, 2 * seconds, parts, 7 << 20)
        return whole_step.Round([step], shape)

    return process


def test_rounds_give_quotients_of_the_same_moment() -> None:
    """The machine is at a third of its speed but for the first round."""
    process = made_up(lambda turn: 3.0 if turn else 1.0)
    lines = whole_step.measure(SMALL, 4, ["trl", whole_step.OWN], process)
    report = whole_step.as_json(SMALL, lines)
    # the model's own, which is not the one that random models are asked to have
    assert report["workload"]["vocab"] == 20 != SMALL.vocab
    found = report["ways"]
    assert found["trl"]["seconds"] == 6 and found[whole_step.OWN]["seconds_of_trl"] == 0.5
    assert found[whole_step.OWN]["cpu_of_trl"] == 0.5
    assert found["trl"]["head_share"] == pytest.approx(0.2)
    assert len(found["trl"]["rounds"]) == 4
    printed = whole_step.table(SMALL, lines)
    assert "| TRL | 40 | 6.00 | 1.00 | 12.00 | 1.00 | 0 | 7 | 1.00 | 20% |" in printed
    assert "| TRL | 0.00 | 0.00 | 0.00 | 0.00 | 4.80 | 1.20 | 0.00 | 0.00 |" in printed


def test_a_process_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    made = whole_step.in_a_process(whole_step.OWN, SMALL)
    assert len(made.steps) == 1 and made.shape.head == 301 * 64
    assert made.median("seconds") == made.steps[0].seconds > 0
    assert made.part("update head") > 0
