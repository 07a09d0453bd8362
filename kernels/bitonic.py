"""Keys of a program in order."""

import triton
import triton.language as tl


@triton.jit
def in_order(key, o, held, LARGEST: tl.constexpr):
    # Largest or smallest first, by a bitonic network over as many places as there are keys: often
    # few. `o`: the places, of which the first `held` hold keys.
    run = 2
    while run < 2 * held:
        step = run // 2
        while step > 0:
            other = tl.gather(key, o ^ step, 0)
            before = ((o & step) == 0) == ((o & run) == 0)
            key = tl.where(before == LARGEST, tl.maximum(key, other), tl.minimum(key, other))
            step = step // 2
        run = run * 2
    return key
