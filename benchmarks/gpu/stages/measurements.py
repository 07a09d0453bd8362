"""What is measured, in the order of what one would rather know: the registry at chosen cases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.cases.registry import OPS
from benchmarks.harness.case import Case, Op

# Qwen 2.5 and 3, Llama 3, Gemma, Llama 2; the most telling first.
VOCABS = (151_936, 128_256, 262_144, 32_000)
ROWS = (8192, 32_768, 2048)
DTYPES = ("bfloat16", "float32")
# Where an op of a group is measured in full. A group that is not named has the last one's.
HEADLINE = {
    "rows": Case(rows=8192, dtype="bfloat16"),
    # Of Qwen3-0.6B. Weight gradients are compared in float64 on the host: slow if much wider.
    "head": Case(rows=8192, width=1024, dtype="bfloat16"),
    "losses": Case(rows=262_144),
    "overhead": Case(rows=8, vocab=256, width=32),
    "": Case(rows=8192, width=1024, dtype="bfloat16"),
}
# One short row and one of several pieces, whole and not: every path of a kernel, in no time.
SMOKE = (
    Case(rows=33, vocab=5003, dtype="float32"),
    Case(rows=33, vocab=16_384, dtype="bfloat16"),
)
REHEARSAL = Case(rows=3, vocab=4500, width=16, dtype="bfloat16")
REHEARSAL_TOKENS = 64
# Groups that are measured in float32 alone, and so are rehearsed in it.
FLOAT32 = ("losses", "overhead")


@dataclass(frozen=True)
class Measurement:
    op: Op
    case: Case
    # With torch.compile, which needs many seconds for each shape: apart, so that nobody waits.
    compiled: bool = False
    peers: bool = True
    variants: bool = False

    @property
    def key(self) -> str:
        s = self.case
        width = f" H={s.width}" if self.op.group == "head" else ""
        size = f"{s.rows}" if self.op.group == "losses" else f"{s.rows} x {s.vocab}{width}"
        return f"{self.op.name}, {size} {s.dtype}{', compiled' * self.compiled}"

    @property
    def logits_bytes(self) -> int:
        return self.case.rows * self.case.vocab * self.case.itemsize


def headline() -> Iterator[Measurement]:
    """Rows of every op at the one size everybody quotes, then the same in float32."""
    ours = [op for op in OPS if op.group == "rows"]
    # Those with a target first.
    ours.sort(key=lambda op: (not op.sizes, "fresh" in op.name))
    for dtype in DTYPES:
        for op in ours:
            yield Measurement(op, replace(HEADLINE["rows"], dtype=dtype), variants=not op.sizes)
    for op in ours:
        yield Measurement(op, HEADLINE["rows"], compiled=True, peers=False)


def sizes() -> Iterator[Measurement]:
    for vocab in VOCABS:
        for dtype in DTYPES:
            for rows in ROWS:
                case = Case(rows=rows, vocab=vocab, dtype=dtype)
                for op in OPS:
                    if op.sizes:
                        yield Measurement(op, case)
    for vocab in VOCABS[1:]:
        yield Measurement(OPS[0], Case(rows=ROWS[0], vocab=vocab, dtype=DTYPES[0]), compiled=True)


def others() -> Iterator[Measurement]:
    found = [op for op in OPS if op.group != "rows"]
    for compiled in (False, True):
        for op in found:
            case = HEADLINE.get(op.group, HEADLINE[""])
            yield Measurement(
                op, case, compiled=compiled, peers=not compiled, variants=not compiled
            )


def smoke() -> Iterator[Measurement]:
    both = [op for op in OPS if op.group == "rows" and not op.sizes]
    for case in SMOKE:
        for op in both:
            yield Measurement(op, case, peers=False)


STAGES = {"smoke": smoke, "headline": headline, "sizes": sizes, "others": others}


def of(stage: str, rehearse: bool) -> list[Measurement]:
    found = list(STAGES[stage]())
    return small(found, stage) if rehearse else found


def small(measurements: list[Measurement], stage: str) -> list[Measurement]:
    """The same ops with next to nothing to do, each once."""
    chosen: dict[str, Measurement] = {}
    for each in measurements:
        rows = REHEARSAL_TOKENS if each.op.group == "losses" else REHEARSAL.rows
        # Sizes that no other stage has, for what is measured once is not measured again.
        vocab = REHEARSAL.vocab + list(STAGES).index(stage)
        dtype = each.case.dtype
        case = replace(REHEARSAL, rows=rows, vocab=vocab, dtype=dtype)
        if dtype == DTYPES[0] or stage == "smoke" or each.op.group in FLOAT32:
            little = replace(each, case=case, compiled=False, variants=False)
            chosen.setdefault(little.key, little)
    return list(chosen.values())
