"""A SIMT machine: the CUDA kernels' own source, compiled as C++, runs on the CPU.

simt.h, simt.cpp     device threads as fibers, barriers, shuffles, shared memory; wrong use is
                     an error that names kernel, block, thread; LOGITLESS_SIMT_SEED: the order
fiber.h, words.h     the stack of such a thread; what its errors say
cuda_names.h, cuda/  CUDA's words; the files of cuda/runtime stand in for those of csrc/cuda/runtime
runtime.cpp          the one device there is
selftest.cpp         right and wrong kernels for the machine itself
module.cpp           the kernels' bindings alone, for the tests of the kernels under sanitizers
build.py             builds that module, and a whole logitless with emulated kernels
problem.py           row problems as NumPy arrays that end where their memory ends
pair_problem.py      the same of a student beside a teacher
oracle.py            the oracle and the tolerances, without the package around them
checks/              the kernels against the oracle, a file a room
"""
