// Errors of the core: std exceptions with a full sentence. The bindings turn them into ValueError.
#pragma once

#include <sstream>
#include <stdexcept>

namespace logitless {

// check(ok, "op: name must be ..., got ", value): throws std::invalid_argument with the parts
// joined.
template <typename... Parts>
inline void check(bool ok, const Parts&... parts) {
  if (ok) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

}  // namespace logitless
