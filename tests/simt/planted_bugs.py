"""Bugs that are planted in the kernels' source, and the check that finds each."""

from __future__ import annotations

from typing import NamedTuple


class Bug(NamedTuple):
    file: str
    right: str
    wrong: str
    check: str  # that finds it
    words: tuple[str, ...]  # any of them


BUGS = {
    "no_barrier": Bug(
        "cuda/rows/backward.cuh", "  sync_block();\n", "", "shapes",
        ("race on shared shared[0]", "shared[0] is read at"),
    ),
    "unwritten_shared": Bug(
        "cuda/rows/backward.cuh", "  if (thread == 0) {\n    shared =",
        "  if (thread == kBackwardThreads) {\n    shared =", "shapes",
        ("before anyone wrote it",),
    ),
    "read_past_the_row": Bug(
        "cuda/rows/transform.cuh", "c < left ?", "c <= left ?", "shapes",
        ("AddressSanitizer: heap-buffer-overflow",),
    ),
    "write_past_the_row": Bug(
        "cuda/rows/backward.cuh", "if (c < left) mine[c]", "if (c <= left) mine[c]", "shapes",
        ("AddressSanitizer: heap-buffer-overflow",),
    ),
    "bias_past_the_row": Bug(
        "cuda/rows/transform.cuh", "if (i * stride < left) y[i] +=", "y[i] +=", "chains",
        ("AddressSanitizer: heap-buffer-overflow",),
    ),
    "dropped_shuffle_step": Bug(
        "cuda/runtime/warp.cuh", "for (int bits = kWarp / 2; bits > 0; bits /= 2) value +=",
        "for (int bits = kWarp / 2; bits > 1; bits /= 2) value +=", "shapes",
        ("beyond tolerance",),
    ),
    "lane_leaves_early": Bug(
        "cuda/rows/partials.cuh", "  Partial partial = warp_moments",
        "  if (lane == 31) return;\n  Partial partial = warp_moments", "shapes",
        ("which does not take part",),
    ),
    "assumed_alignment": Bug(
        "cuda/rows/partials.cuh", "const bool aligned = aligned16(source);",
        "const bool aligned = true;", "layout",
        ("at a misaligned address",),
    ),
    "target_read_too_late": Bug(
        "cuda/rows/backward.cuh", "    differentiate(own,",
        "    own[0] = value_of(source[target]);\n    differentiate(own,", "shapes",
        ("differ; first at",),
    ),
    "lost_update": Bug(
        "cuda/rows/finalize.cuh", "atomic_lower(args.error, ", "*args.error = (", "errors",
        ("AssertionError",),
    ),
    "reads_idle_rows": Bug(
        "cuda/rows/backward.cuh", "(g_logp == 0 && g_entropy == 0 && g_lse == 0)", "false", "masks",
        ("AddressSanitizer: SEGV",),
    ),
    "narrow_offset": Bug(
        "cuda/rows/partials.cuh", "+ row_offset(args.logits, row) +",
        "+ static_cast<int32_t>(row_offset(args.logits, row)) +", "far",
        ("AddressSanitizer: SEGV", "differ; first at"),
    ),
    "narrow_capture": Bug(
        "cuda/topk/capture.cuh", "+ row_offset(args.logits, row);",
        "+ static_cast<int32_t>(row_offset(args.logits, row));", "topk_far",
        ("AddressSanitizer: SEGV", "AssertionError"),
    ),
    "narrow_product": Bug(
        "cuda/topk/multiply.cuh", "+ row * dense.strides[0];",
        "+ static_cast<int32_t>(row * dense.strides[0]);", "sparse_far",
        ("AddressSanitizer: SEGV", "AssertionError"),
    ),
    "narrow_set": Bug(
        "cuda/topk/set_logits.cuh", "+ row * matrix.strides[0];",
        "+ static_cast<int32_t>(row * matrix.strides[0]);", "set_far",
        ("AddressSanitizer: SEGV", "AssertionError"),
    ),
    "narrow_set_of_a_tile": Bug(
        "cuda/topk/set_tiles.cuh", "+ row * args.tile.strides[0];",
        "+ static_cast<int32_t>(row * args.tile.strides[0]);", "set_far",
        ("AddressSanitizer: SEGV", "AssertionError"),
    ),
    "narrow_draw": Bug(
        "cuda/sampling/blocks.cuh", "+ row_offset(logits, row);",
        "+ static_cast<int32_t>(row_offset(logits, row));", "draw_far",
        ("AddressSanitizer: SEGV", "AssertionError"),
    ),
    "narrow_search": Bug(
        "cuda/tokens/ids.cuh", "const int64_t middle = (low + high) / 2;",
        "const int64_t middle = static_cast<int32_t>(low + high) / 2;", "token_far",
        ("AddressSanitizer: SEGV", "AssertionError", "runtime error"),
    ),
    "last_of_equal_maxima": Bug(
        "cuda/rows/partials.cuh", "for (int k = P::kVectors - 1; k >= 0; --k) {",
        "for (int k = 0; k < P::kVectors; ++k) {", "extras",
        ("AssertionError",),
    ),
    "gap_by_product": Bug(
        "cuda/divergence/columns.cuh", "p > 0.0f ? apart * p : 0.0f", "apart * p", "pair_nowhere",
        ("beyond tolerance",),
    ),
    "lane_leaves_a_pair": Bug(
        "cuda/divergence/moments.cuh", "  SideSums own, other;",
        "  if (lane == 31) return;\n  SideSums own, other;", "pair_shapes",
        ("which does not take part",),
    ),
    "assumed_quads": Bug(
        "cuda/divergence/quads.cuh", "at.stride == 1 && quad_aligned(source);", "at.stride == 1;",
        "pair_layout", ("at a misaligned address",),
    ),
    "quads_past_the_row": Bug(
        "cuda/divergence/quads.cuh", "if (i * at.stride < at.left_of(k)) {",
        "if (i * at.stride <= at.left_of(k)) {", "pair_shapes",
        ("AddressSanitizer: heap-buffer-overflow",),
    ),
    "split_left_out": Bug(
        "cuda/divergence/combine.cuh",
        "for (int64_t i = lane; i < args.splits; i += kWarp) {\n    add_part",
        "for (int64_t i = lane; i + 1 < args.splits; i += kWarp) {\n    add_part", "pair_shapes",
        ("beyond tolerance",),
    ),
    "noise_of_a_warp_not_awaited": Bug(
        "cuda/divergence/noise.cuh", "      sync_warp();\n", "", "pair_noise",
        ("race on shared noise[", "before anyone wrote it"),
    ),
    "noise_of_a_block_not_awaited": Bug(
        "cuda/divergence/gradient.cuh", "        sync_block();\n", "", "pair_noise",
        ("race on shared noise[", "before anyone wrote it"),
    ),
    "noise_of_a_group_from_its_start": Bug(
        "cuda/divergence/noise.cuh", "i % 16 - skipped;", "i % 16;", "pair_noise",
        ("beyond tolerance", "AssertionError", "before anyone wrote it"),
    ),
    "reads_idle_pairs": Bug(
        "cuda/divergence/gradient.cuh", "if (terms.active != 0.0f) {", "{", "pair_masks",
        ("AddressSanitizer: SEGV",),
    ),
    "bins_cleared_too_late": Bug(
        "cuda/tokens/radix.cuh", "  counts[thread] = 0;\n  sync_block();\n",
        "  counts[thread] = 0;\n", "token_selection",
        ("race on shared counts[", "before anyone wrote it"),
    ),
    "masked_lane_leaves": Bug(
        "cuda/tokens/sums.cuh", "  first.value = sum_of_warp(first.value);",
        "  if (count == 0) return;\n  first.value = sum_of_warp(first.value);", "token_sums",
        ("which does not take part",),
    ),
    "loss_past_the_tokens": Bug(
        "cuda/tokens/loss.cuh", "if (i >= args.n) break;", "if (i > args.n) break;", "token_loss",
        ("AddressSanitizer: heap-buffer-overflow",),
    ),
    "keys_sorted_too_early": Bug(
        "cuda/topk/keys.cuh", "keys[i] = 0;\n  sync_block();\n", "keys[i] = 0;\n", "topk_entries",
        ("race on shared keys[", "before anyone wrote it"),
    ),
    "totals_written_too_early": Bug(
        "cuda/topk/capture.cuh", "turn = 1 - turn;", "turn = 0;", "topk_entries",
        ("race on shared totals[",),
    ),
    "masked_rows_captured_again": Bug(
        "cuda/topk/capture.cuh", "if (all && !active) return;", "", "topk_again",
        ("AssertionError",),
    ),
    "no_room_looked_for": Bug(
        "cuda/topk/capture.cuh", "again = found.count + all > kRoom;", "again = false;",
        "topk_entries", ("shared keys[2048] is out of bounds",),
    ),
    "tie_by_the_larger_id": Bug(
        "cuda/topk/keys.cuh", "static_cast<uint32_t>(~id);", "static_cast<uint32_t>(id);",
        "topk_entries", ("AssertionError",),
    ),
    "sparse_row_past_its_end": Bug(
        "cuda/topk/multiply.cuh", "i + u < stop ?", "i + u <= stop ?", "sparse_products",
        ("AssertionError", "AddressSanitizer: heap-buffer-overflow"),
    ),
    "columns_past_the_row": Bug(
        "cuda/topk/multiply.cuh", "if (h >= columns.left) continue;", "", "sparse_products",
        ("AddressSanitizer: heap-buffer-overflow", "AssertionError"),
    ),
    "a_chain_left_out": Bug(
        "cuda/topk/multiply.cuh", "for (int64_t part = parts.start; part < parts.stop; ++part)",
        "for (int64_t part = parts.start; part + 1 < parts.stop; ++part)", "sparse_products",
        ("AssertionError",),
    ),
    "warp_left_out": Bug(
        "cuda/tokens/sequences.cuh", "for (int i = 1; i < kTokenWarps; ++i)",
        "for (int i = 2; i < kTokenWarps; ++i)", "token_sequences",
        ("AssertionError",),
    ),
    "columns_past_the_tile": Bug(
        "cuda/sampling/blocks.cuh", "y[i] = i * stride < left ? value_of",
        "y[i] = i * stride <= left ? value_of", "draws",
        ("AddressSanitizer: heap-buffer-overflow",),
    ),
    "lane_finds_alone": Bug(
        "cuda/sampling/draw.cuh", "  const int passing = least_of_warp(",
        "  if (mine == 0) return -1;\n  const int passing = least_of_warp(", "draws",
        ("which does not take part", "divergent"),
    ),
    "lanes_without_those_before": Bug(
        "cuda/sampling/draw.cuh", "before += (lane & bits) != 0 ? other : 0;",
        "before += (lane & bits) == 0 ? other : 0;", "draws",
        ("AssertionError",),
    ),
    "sorted_without_barrier": Bug(
        "cuda/sampling/slabs.cuh", "        }\n      }\n      sync_block();\n",
        "        }\n      }\n", "truncated_draws",
        ("race on shared keys[",),
    ),
    "sums_left_behind": Bug(
        "cuda/sampling/slabs.cuh",
        "  // nobody reads what the last call has left\n  sync_block();\n", "", "truncated_draws",
        ("race on shared warps[",),
    ),
    "entry_past_the_last": Bug(
        "cuda/topk/set_logits.cuh", "    if (entry >= sets.entries) continue;\n", "", "set_logits",
        ("AddressSanitizer: heap-buffer-overflow",),
    ),
    "row_of_the_entry_before": Bug(
        "cuda/topk/set_logits.cuh", "if (sets.offsets[row + 1] <= entry)",
        "if (sets.offsets[row + 1] < entry)", "set_logits",
        ("AssertionError",),
    ),
    "entry_past_the_tile": Bug(
        "cuda/topk/set_tiles.cuh", "column >= args.tile.shape[1]", "column > args.tile.shape[1]",
        "set_tiles", ("AddressSanitizer: heap-buffer-overflow", "differ; first at"),
    ),
    "lane_without_an_entry_leaves": Bug(
        "cuda/topk/set_rows.cuh", "  float m = -INFINITY;\n",
        "  if (range.start + lane >= range.stop) return;\n  float m = -INFINITY;\n", "set_rows",
        ("which does not take part",),
    ),
    "target_of_another_lane": Bug(
        "cuda/topk/set_rows.cuh", "y_target = y_target == y_target ? y_target : y;", "", "set_rows",
        ("AssertionError", "beyond tolerance"),
    ),
    "teachers_maximum_of_a_lane": Bug(
        "cuda/divergence/entries.cuh", "  m_other = warp_max(m_other);\n", "", "set_pairs",
        ("AssertionError",),
    ),
    "pair_named_by_its_place": Bug(
        "cuda/divergence/finalize.cuh", "args.row_ids != nullptr ? args.row_ids[row] : row", "row",
        "pair_errors", ("AssertionError",),
    ),
    "idle_pairs_in_a_mix": Bug(
        "cuda/divergence/mix.cuh", "  if (!args.rows.student.active(split.row)) return;\n", "",
        "pair_masks", ("AddressSanitizer: SEGV",),
    ),
    "slope_without_the_softcap": Bug(
        "cuda/divergence/row_terms.cuh", "student.transform.softcap != 0 ?", "false ?",
        "pair_chains", ("beyond tolerance",),
    ),
    "terms_past_the_rows": Bug(
        "cuda/divergence/terms.cuh", "  if (row >= args.from.rows.student.n) return;\n", "",
        "pair_shapes", ("AddressSanitizer: heap-buffer-overflow",),
    ),
    "tie_to_the_later_tile": Bug(
        "cuda/rows/combine.cuh", "m > state.moments.m", "m >= state.moments.m", "cut_tiles",
        ("AssertionError",),
    ),
    "kernel_without_the_chain": Bug(
        "cuda/rows/storage.cuh", "? backward_kernel<S, true>", "? backward_kernel<S, false>",
        "chains", ("beyond tolerance",),
    ),
    "draw_from_the_whole_row": Bug(
        "cuda/sampling/truncated.cuh", "row) * kept.mass, up)", "row) * whole.s0, up)",
        "truncated_draws", ("AssertionError",),
    ),
    "draw_behind_the_number": Bug(
        "cuda/sampling/truncated.cuh", " && masses[last + 1] < limits.enough", "",
        "truncated_draws", ("AssertionError",),
    ),
    "tokens_dropped_by_a_warp": Bug(
        "cuda/tokens/block.cuh", "bits > 0; bits /= 2) value +=", "bits > 1; bits /= 2) value +=",
        "token_loss", ("AssertionError",),
    ),
    "band_without_an_end": Bug(
        "cuda/tokens/scores.cuh", "value > args.low && value < args.high", "value > args.low",
        "token_scores", ("AssertionError",),
    ),
    "slot_of_another_id": Bug(
        "cuda/tokens/ids.cuh", " && args.ids[first - 1] == id)", ")", "token_ids",
        ("AssertionError",),
    ),
    "share_of_no_tokens": Bug(
        "cuda/tokens/numbers.cuh", "1 / (count > 1 ? count : 1)", "1 / count", "token_numbers",
        ("AssertionError",),
    ),
    "search_left_too_early": Bug(
        "cuda/tokens/report.cuh",
        "    // nobody reads what the search before has left\n    sync_block();\n", "",
        "token_report", ("race on shared found[",),
    ),
    "entries_below_the_margin": Bug(
        "cuda/topk/entries.cuh", "keys[i] = key > floor ? key : 0;", "keys[i] = key;",
        "topk_entries", ("AssertionError",),
    ),
    "set_past_the_row": Bug(
        "cuda/sampling/slabs.cuh", "i < 8 && byte * 8 + i < columns_", "i < 8", "truncated_draws",
        ("AddressSanitizer: heap-buffer-overflow",),
    ),
}  # fmt: skip


# Headers without one.
REPLACED = "the machine has a file of its own in its place"
WITHOUT = {"cuda/runtime/device.cuh": REPLACED, "cuda/runtime/launch.cuh": REPLACED}
