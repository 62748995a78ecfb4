"""Implementations for CPUs, and compiler options with which CPUs are faster.

Without this package the zoo computes the same, but more slowly: `zoo.ops.convolution`
calls `convolve`, `zoo.ops.locally_connected` calls `locally_connected` and
`zoo.ops.dense` calls `multiply_few_rows` when a program is lowered for CPUs, and whole
functions, such as that of `make_classifier`, are compiled by `jit_inference`, and those
of `zoo.explain` by `jit_gradients`.
"""

from zoo.cpu.compiler import compiler_options, jit_gradients, jit_inference
from zoo.cpu.convolution import Window, convolve
from zoo.cpu.locally_connected import locally_connected
from zoo.cpu.products import has_few_rows, mean_of_map, multiply_few_rows

__all__ = [
    "Window",
    "compiler_options",
    "convolve",
    "has_few_rows",
    "jit_gradients",
    "jit_inference",
    "locally_connected",
    "mean_of_map",
    "multiply_few_rows",
]
