"""What the ops of a student and a teacher return."""

from __future__ import annotations

from typing import Any, NamedTuple

KINDS = ("reverse_kl", "forward_kl", "jsd")
# Of every row without another pass, whatever the divergence is.
EXTRAS = ("reverse_kl", "forward_kl")


class Divergence(NamedTuple):
    """Per token, in nats; tokens outside the mask are 0."""

    divergence: Any  # of the student from the teacher, >= 0
    entropy: Any  # of the student
    teacher_entropy: Any  # not differentiable
    extras: dict[str, Any]  # the requested extras by name, not differentiable


def to_divergence(
    named: dict[str, Any], shape: tuple[int, ...], extras: tuple[str, ...]
) -> Divergence:
    """From flat tensors or arrays, in the caller's shape."""
    divergence, entropy, teacher_entropy = (
        named[name].reshape(shape) for name in Divergence._fields[:3]
    )
    more = {name: named[name].reshape(shape) for name in extras}
    return Divergence(divergence, entropy, teacher_entropy, more)
