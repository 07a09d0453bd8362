"""Tables of names as text, for commands, and as Markdown, for the pages that they make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence


def listed(rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Each name beside the first of its lines; lines that are empty are left out."""
    width = max(len(name) for name, _ in rows)
    out = []
    for name, lines in rows:
        labels = (name, *[""] * (len(lines) - 1))
        pairs = zip(labels, lines, strict=True)
        out += [f"{label:<{width}}  {line}" for label, line in pairs if line]
    return "\n".join(out) + "\n"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table."""
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def with_note(formula: str, note: str) -> str:
    return f"{formula}. {note}" if note else formula
