// How the machine's messages name places, sizes and what a thread waits for.
#pragma once

#include <cstring>
#include <sstream>
#include <string>

#include "simt.h"

namespace simt {

inline std::string text(Where where) {
  const char* slash = std::strrchr(where.file, '/');
  return std::string(slash ? slash + 1 : where.file) + ":" + std::to_string(where.line);
}

inline std::string text(dim3 d) {
  std::ostringstream out;
  out << "(" << d.x << "," << d.y << "," << d.z << ")";
  return out.str();
}

inline bool same(const Arrival& a, const Arrival& b) {
  const bool same_file =
      a.where.file == b.where.file || std::strcmp(a.where.file, b.where.file) == 0;
  return a.op == b.op && a.mask == b.mask && a.where.line == b.where.line && same_file;
}

// Where a thread waits, in words.
inline std::string text(const Arrival& a) {
  std::ostringstream out;
  switch (a.op) {
    case Op::barrier: out << "__syncthreads"; break;
    case Op::sync_warp: out << "__syncwarp"; break;
    case Op::shuffle: out << "a shuffle"; break;
    case Op::vote: out << "a vote"; break;
  }
  if (a.op != Op::barrier) out << " of lanes 0x" << std::hex << a.mask << std::dec;
  out << " (" << text(a.where) << ")";
  return out.str();
}

}  // namespace simt
