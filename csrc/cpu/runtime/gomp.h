// The thread pool of GNU OpenMP, where a library of this process has brought it.
#pragma once

namespace logitless::cpu {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// What runs a function on that pool; null where there is none, or where a fork has cut it off.
GompParallel find_gomp();

// Whether a fork may have cut it off: nobody tells whether it had been started.
bool gomp_may_be_lost();

// Whether this process is a fork of one in which the forking thread had used the pool through
// find_gomp: whatever uses it in this process then waits for ever.
bool gomp_is_lost();

}  // namespace logitless::cpu
