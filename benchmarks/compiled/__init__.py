"""What the compilers made of the kernels."""
