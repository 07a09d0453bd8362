#!/usr/bin/env bash
# Cross-compiles the row kernels for 64-bit Arm, where the baseline vectors are NEON's, and runs
# their check under an emulator. Status 77: a program for that is missing, and which one is printed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
for needed in aarch64-linux-gnu-g++ aarch64-linux-gnu-objdump qemu-aarch64; do
  command -v "$needed" >/dev/null && continue
  echo "skipped: $needed is not on PATH (Debian: apt install g++-aarch64-linux-gnu qemu-user)"
  exit 77
done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
flags=(-std=c++17 -O3 -static -pthread -Wall -Wextra -DLOGITLESS_X86=0)
kernel=(-ffp-contract=fast -fno-math-errno -fno-trapping-math)
aarch64-linux-gnu-g++ "${flags[@]}" "${kernel[@]}" -c csrc/cpu/rows/rows_scalar.cpp -o "$folder/rows.o"
# -O1: GCC 12 for Arm crashes on the check program at -O3.
aarch64-linux-gnu-g++ "${flags[@]}" -O1 -ffp-contract=off -o "$folder/check" \
  tests/cross/rows_check.cpp csrc/cpu/rows/{rows,dispatch}.cpp \
  csrc/cpu/runtime/{errors,gomp,isa,parallel}.cpp "$folder/rows.o"
fused=$(aarch64-linux-gnu-objdump -d "$folder/rows.o" | grep -c $'fmla\t.*\.4s' || true)
echo "NEON fused multiply-adds in the kernels: $fused"
((fused > 0))
qemu-aarch64 "$folder/check"
