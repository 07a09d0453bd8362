#!/usr/bin/env bash
# Cross-compiles the row kernels for 64-bit Arm, where the baseline vectors are NEON's, and runs
# their check under an emulator. Debian: apt install g++-aarch64-linux-gnu qemu-user
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
program=$(mktemp)
trap 'rm -f "$program"' EXIT
flags=(-std=c++17 -O3 -static -pthread -Wall -Wextra -DLOGITLESS_X86=0)
kernel=(-ffp-contract=fast -fno-math-errno -fno-trapping-math)
aarch64-linux-gnu-g++ "${flags[@]}" "${kernel[@]}" -c csrc/cpu/rows/rows_scalar.cpp -o "$program.o"
# -O1: GCC 12 for Arm crashes on the check program at -O3.
aarch64-linux-gnu-g++ "${flags[@]}" -O1 -ffp-contract=off -o "$program" tests/cross/rows_check.cpp \
  csrc/cpu/rows/{rows,dispatch}.cpp csrc/cpu/runtime/{errors,gomp,isa,parallel}.cpp "$program.o"
fused=$(aarch64-linux-gnu-objdump -d "$program.o" | grep -c $'fmla\t.*\.4s' || true)
rm -f "$program.o"
echo "NEON fused multiply-adds in the kernels: $fused"
((fused > 0))
qemu-aarch64 "$program"
