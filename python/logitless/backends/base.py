"""What a backend is: one record per kind of device, whose groups of kernels have the same methods.

A capability is a group of kernels here, or one more method of a group. The functions above ask a
record what it has; they never ask for its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from logitless.backends.machine import Machine
    from logitless.backends.row_kernels.rows import Rows
    from logitless.backends.row_kernels.topk import TopK
    from logitless.backends.token_kernels.protocol import TokenKernels


class Support(NamedTuple):
    """Whether a backend serves something; if not, a sentence that says why."""

    ok: bool
    reason: str = ""


class RowKernels(Protocol):
    """Moments and gradients of rows of logits; an object is bound to the rows of one call.

    `state` is [n, STATE] float64, see csrc/core/row_state.h.
    """

    def forward(
        self, tile: Any, state: Any, *, start: int, first: bool, extras: bool, **topk: Any
    ) -> None:
        """Combine logits[:, start : start + width] with the state."""

    def merge(self, parts: Any, state: Any) -> None:
        """Write the state over all columns from [ranges, n, STATE] of consecutive ranges."""

    def finalize(self, state: Any, vocab: int, *, row_ids: Any = None, **outputs: Any) -> None:
        """Write logp, entropy, lse and extras. A bad row raises, or is flagged on a device."""

    def gradient(
        self,
        tile: Any,
        state: Any,
        out: Any,
        *,
        start: int,
        g_logp: Any,
        g_entropy: Any,
        g_lse: Any,
    ) -> None:
        """Write d(logits) of a tile to `out`, which may be the tile, from g_logp, g_entropy and
        g_lse: [n] float64 or None."""


class SparseKernels(Protocol):
    """Products with sparse rows: offsets, columns and values."""

    def transpose(
        self, offsets: Any, columns: Any, values: Any, *, row_names: Any, vocab: int
    ) -> tuple[Any, Any, Any, Any]:
        """offsets, columns, values and names of the columns that have entries, in order; others of
        the `vocab` may be among them. An entry's column is then the name of its row before."""

    def multiply(
        self, offsets: Any, columns: Any, values: Any, *, names: Any, dense: Any, out: Any,
        add: bool, threads: int,
    ) -> None:  # fmt: skip
        """out[names] = rows @ dense, or with `add` += it."""


class TopKKernels(Protocol):
    """The largest logits of rows, and sparse rows made of them."""

    def bind(self, topk: TopK) -> Any:
        """As `RowKernels.forward` of the same backend takes it."""

    # Rows outside the mask stay as they are, in all three.

    def recapture(
        self, rows: Rows, tile: Any, state: Any, topk: TopK, *, start: int, first: bool
    ) -> None:
        """What `RowKernels.forward` keeps of a tile, of rows whose whole state is known."""

    def finalize(self, rows: Rows, state: Any, topk: TopK) -> None:
        """After the last tile: leave the entries of each row sorted, largest first."""

    def measure(self, rows: Rows, state: Any, topk: TopK, **outputs: Any) -> None:
        """Write to `dropped_mass` and `dropped_entropy` what is not kept of each row, and to
        `wider` whether more entries might serve it."""

    def gradient(self, rows: Rows, state: Any, topk: TopK, **arrays: Any) -> None:
        """d(logits) of the kept entries of some rows, as sparse rows."""

    def add_row_sums(
        self, offsets: Any, columns: Any, values: Any, *, names: Any, out: Any
    ) -> None:
        """out[names] += the sums of the rows."""


class SetKernels(Protocol):
    """Rows over sets of the vocabulary: csrc/cpu's sets.h. `csr`: offsets, columns and values."""

    def logits(self, *csr: Any, **arrays: Any) -> None:
        """values = hidden[row] . weight[column] of every entry."""

    def read_tile(self, *csr: Any, **arrays: Any) -> None:
        """Read the entries that a tile holds."""

    def write_tile(self, *csr: Any, **arrays: Any) -> None:
        """Write a tile that holds the entries, and 0 elsewhere."""

    def forward(
        self, rows: Rows, offsets: Any, columns: Any, values: Any, *, state: Any, extras: bool
    ) -> None:
        """The states of rows over their entries."""

    def gradient(self, rows: Rows, *csr: Any, **arrays: Any) -> None:
        """Write d(values) to `gradient`."""

    # Beside a teacher's, as DivergenceKernels: `entries` are offsets, columns, the student's values
    # and the teacher's.

    def pair_forward(self, rows: Rows, teacher: Rows, *entries: Any, state: Any) -> None:
        """The states of rows over their entries."""

    def pair_mix(
        self, rows: Rows, teacher: Rows, *entries: Any, state: Any, sums: Any, beta: float
    ) -> None:
        """Write `sums` [n, 2]."""

    def pair_gradient(
        self, rows: Rows, teacher: Rows, *entries: Any, state: Any, out: Any, **how: Any
    ) -> None:
        """Write d(the student's values) to `out`."""


class SamplingKernels(Protocol):
    """Tokens drawn from rows of logits."""

    # Whether a truncated draw takes the largest logits, kept while tiles stream by, and whole rows
    # only where these do not do; else it takes whole rows, and nothing waits for what it finds.
    keeps_largest: bool

    def sample(
        self, rows: Rows, tile: Any, state: Any, best: Any, *, start: int, first: bool, **noise: Any
    ) -> None:
        """Combine a tile with the state, and draw a token on the way: csrc/cpu's sample.h."""

    def draw_truncated(
        self, rows: Rows, state: Any, drawn: Any, *, logits: Any = None, **options: Any
    ) -> None:
        """Draw from the top_k, top_p and min_p of each row, of `topk` or of whole `logits`."""


class DivergenceKernels(Protocol):
    """Rows of logits beside a teacher's; an object is bound to the rows of one call, of both.

    `tile`, `other`: the student's logits and the teacher's, of the same columns. `state` is
    [n, STATE] float64, see csrc/core/divergence.h.
    """

    def forward(self, tile: Any, other: Any, state: Any, *, start: int, first: bool) -> None:
        """Combine a tile with the state."""

    def merge(self, parts: Any, state: Any) -> None:
        """Write the state over all columns from [ranges, n, STATE] of consecutive ranges."""

    def mix(
        self,
        tile: Any,
        other: Any,
        state: Any,
        sums: Any,
        *,
        beta: float,
        start: int,
        first: bool,
    ) -> None:
        """Add a tile to `sums` [n, 2]: what each diverges from the mix of `beta`."""

    def finalize(self, state: Any, *, row_ids: Any = None, **outputs: Any) -> None:
        """Write entropies and both KL. A bad row raises, or is flagged on a device."""

    def gradient(
        self,
        tile: Any,
        other: Any,
        state: Any,
        out: Any,
        *,
        start: int,
        kind: str,
        beta: float,
        sums: Any,
        g_divergence: Any,
        g_entropy: Any,
    ) -> None:
        """Write d(logits) of the student's tile to `out`, which may be the tile."""


class Products(Protocol):
    """Dense products of matrices. Where the machine has `mixed_products`, `out` and `total` may be
    float32 while operands have 16 bits."""

    def multiply(self, a: Any, b: Any, out: Any) -> None:
        """out = a @ b"""

    def add(self, total: Any, a: Any, b: Any, *, beta: float, alpha: float) -> None:
        """total = beta * total + alpha * (a @ b); beta = 0 ignores what is there."""

    def __hash__(self) -> int:
        """Of the object: what is found out about its products is remembered."""


# The op over the [N] vectors of a loss.
TOKENS = "policy_loss"
# What an op cannot do without: one of these groups is enough.
REQUIRES: dict[str, tuple[str, ...]] = {
    "token_stats": ("rows", "statistics"),
    "linear_token_stats": ("rows", "statistics"),
    "linear_policy_loss": ("rows", "statistics"),
    "linear_sample": ("sampling",),
    "divergence": ("divergence", "full_divergence"),
    "linear_divergence": ("divergence", "full_divergence"),
    TOKENS: ("tokens",),
    # options of the head ops
    "tail_mass": ("topk",),
    "sampling_mask": ("sets", "statistics"),
    "weight_grad": ("sets",),
    "entropy_top_p": ("sets", "statistics"),
    "teacher_noise": ("divergence", "full_divergence"),
    "vocab_group": ("rows",),
    "batch_invariant": ("rows",),
    "active_capacity": ("rows",),
}


@dataclass(frozen=True)
class Backend:
    """A backend. A group that is not built is None, and `absent` has one sentence that says so."""

    name: str
    # why it cannot serve tensors of (device, dtype), both as text; "" if it can
    why_not: Callable[[str, str], str]
    # the numbers of a device, torch's or its text; the same object for the same device
    machine: Callable[[Any], Machine]
    # makes the row kernels of a call
    rows: Callable[[Rows], RowKernels] | None = None
    # statistics of full logits, differentiable by autograd: what a backend without row kernels has
    statistics: Callable[..., dict[str, Any]] | None = None
    topk: TopKKernels | None = None
    # what `topk` and `sets` make gradients of a head by: a backend that has one of them has this
    sparse: SparseKernels | None = None
    sets: SetKernels | None = None
    sampling: SamplingKernels | None = None
    # makes the token kernels of a device
    tokens: Callable[[str], TokenKernels] | None = None
    # makes the kernels of a student's rows beside their teacher's
    divergence: Callable[[Rows, Rows], DivergenceKernels] | None = None
    # of full logits of both, differentiable by autograd: as `statistics`
    full_divergence: Callable[..., dict[str, Any]] | None = None
    # dense products; None: torch's
    products: Products | None = None
    absent: Mapping[str, str] = field(default_factory=dict)
    # Kernels run while the host goes on: bad rows are flagged, and found later.
    asynchronous: bool = False
    # how its kernels were built, for `logitless doctor`
    described: Callable[[], str] = lambda: ""
    # writes the transpose of a tile; None: products take transposed views as they are
    transpose: Callable[[Any, Any, int], None] | None = None
    # whether products of a dtype are faster of operands that were transposed first
    prefers_transposed: Callable[[Any], bool] = lambda dtype: False

    def has(self, need: str) -> Support:
        """Whether it has what an op, or an option of one, cannot do without."""
        groups = REQUIRES[need]
        if any(getattr(self, group) is not None for group in groups):
            return Support(True)
        return Support(False, self.absent[groups[0]])

    def supports(self, need: str, device: str, dtype: str = "float32") -> Support:
        """The same for tensors of a dtype on a device."""
        reason = self.why_not(device, dtype)
        return Support(False, reason) if reason else self.has(need)

    def require(self, op: str, **options: Any) -> None:
        """NotImplementedError where an option that is in use is not built."""
        for name, value in options.items():
            support = self.has(name) if value else Support(True)
            if not support.ok:
                raise NotImplementedError(
                    f"{op}: {name} is not built for backend {self.name!r}: {support.reason}"
                )

    def select(self, mask: Any, number: int | None = None) -> Any:
        """The indices where a [n] mask is true, in order. Of a device the host waits for their
        number, where it is not given."""
        found = mask.nonzero() if number is None else mask.nonzero_static(size=number)
        return found.squeeze(1)

    def select_fixed(self, mask: Any, capacity: int) -> Any:
        """The first `capacity` of them, fewer than the mask has places; where there are not so
        many, each place left holds the index of one where the mask is false. Nothing waits."""
        found = mask.nonzero_static(size=capacity, fill_value=-1).squeeze(1)
        return found.where(found >= 0, mask.int().argmin())
