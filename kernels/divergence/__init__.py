"""Rows under two softmaxes, a student's and a teacher's: `pair` on top of a kernel a file.

What a state holds, and every formula, is csrc/core/divergence.h's.
"""
