"""3x3 convolutions with 2.25 times fewer products.

Winograd's F(2x2, 3x3) computes 2 x 2 outputs from each tile of 4 x 4 inputs: tile and
kernel become 16 numbers per channel, and each of these takes one matrix product,
[tiles, I] @ [I, O]. In one dimension, for a tile d0 .. d3 and a kernel g0 g1 g2:

    v0, v3 = d0 - d2, d1 - d3              v1, v2 = d2 + d1, d2 - d1
    u0, u3 = g0, g2                        u1, u2 = (g0 + g2 +- g1) / 2
    y0, y1 = m0 + m1 + m2, m1 - m2 - m3    where m = v u

The outer pair (0, 3) and the inner pair (1, 2) are separate arrays, and a pair is an
axis of length two. So nothing is concatenated, which is slow in XLA on CPUs.

Reference:
  Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
Padding = tuple[tuple[int, int], tuple[int, int]]

# Bytes of transformed tiles that stay in a shared cache (measured).
GROUP_BYTES = 7 * 2**22
# With fewer channels, or fewer numbers in an image's map, as in ResNets, or with more
# pixels for each channel, the transforms take longer than is saved (measured).
CHANNELS = 128
NUMBERS = 200_000
PIXELS_PER_CHANNEL = 128


def pays(x: Array, kernel: Array) -> bool:
    """Whether a convolution of these shapes is faster with `convolve_3x3`."""
    _, height, width, channels = x.shape
    channels = min(channels, kernel.shape[3])
    return (
        x.dtype == jnp.promote_types(x.dtype, jnp.float32)
        and channels >= CHANNELS
        and height * width * channels >= NUMBERS
        and height * width <= PIXELS_PER_CHANNEL * channels
    )


def convolve_3x3(x: Array, kernel: Array, padding: Padding) -> Array:
    """Computes a cross-correlation of stride 1.

    Args:
      x: [B, H, W, I], float32 or wider.
      kernel: [3, 3, I, O].
      padding: ((above, below), (left, right)), not negative.

    Returns:
      [B, H + above + below - 2, W + left + right - 2, O].
    """
    sides = zip(x.shape[1:3], padding, strict=True)
    height, width = (n + sum(pad) - 2 for n, pad in sides)
    (above, below), (left, right) = padding
    # Padded to an even number of outputs.
    sides = (above, below + height % 2), (left, right + width % 2)
    x = jnp.pad(x, ((0, 0), *sides, (0, 0)))
    kernels = [u for rows in _kernel_pairs(kernel, 0) for u in _kernel_pairs(rows, 1)]

    numbers = 16 * -(-height // 2) * -(-width // 2) * sum(kernel.shape[2:])
    most = max(1, GROUP_BYTES // (numbers * x.dtype.itemsize))
    few = max(n for n in range(1, min(most, len(x)) + 1) if len(x) % n == 0)
    # Tiles are computed again in the backward pass: stored, they would take four times
    # as much memory as the images.
    of_few = jax.checkpoint(_convolve_even, prevent_cse=False)
    if few == len(x):
        y = of_few(x, kernels)
    else:
        groups = x.reshape(-1, few, *x.shape[1:])
        y = lax.map(partial(of_few, kernels=kernels), groups)
        y = y.reshape(len(x), *y.shape[2:])
    return y[:, :height, :width]


def _convolve_even(x: Array, kernels: list[Array]) -> Array:
    (b, h, w, channels), features = x.shape, kernels[0].shape[3]
    phases = x.reshape(b, h // 2, 2, w // 2, 2, channels).transpose(2, 4, 0, 1, 3, 5)
    tiles = [v for rows in _tile_pairs(phases, 0) for v in _tile_pairs(rows, 1)]
    products = []
    for v, u in zip(tiles, kernels, strict=True):
        v = v.reshape(2, 2, -1, channels)
        products.append(lax.dot_general(v, u, (((3,), (2,)), ((0, 1), (0, 1)))))
    outer, inner = (_outputs(*pair, 1) for pair in (products[:2], products[2:]))
    y = _outputs(outer, inner, 0).reshape(2, 2, b, h // 2 - 1, w // 2 - 1, features)
    return y.transpose(2, 3, 0, 4, 1, 5).reshape(b, h - 2, w - 2, features)


# Transforms along one axis, from or to an outer and an inner pair.


def _tile_pairs(phases: Array, axis: int) -> tuple[Array, Array]:
    here = lax.slice_in_dim(phases, 0, -1, axis=axis + 3)
    beyond = lax.slice_in_dim(phases, 1, None, axis=axis + 3)
    d1, d2 = _halves(here, axis)[1], _halves(beyond, axis)[0]
    return here - beyond, _both(d2, axis) + _signs(phases, axis) * _both(d1, axis)


def _kernel_pairs(kernel: Array, axis: int) -> tuple[Array, Array]:
    g0, g1, g2 = (lax.slice_in_dim(kernel, i, i + 1, axis=axis) for i in range(3))
    outer = lax.slice_in_dim(kernel, 0, 3, 2, axis=axis)
    even, odd = (_both(g / 2, axis) for g in (g0 + g2, g1))
    return outer, even + _signs(outer, axis) * odd


def _outputs(outer: Array, inner: Array, axis: int) -> Array:
    signs = _signs(outer, axis)
    first, second = (_both(half, axis) for half in _halves(inner, axis))
    return signs * outer + first + signs * second


def _halves(pair: Array, axis: int) -> tuple[Array, Array]:
    return tuple(lax.slice_in_dim(pair, i, i + 1, axis=axis) for i in range(2))


def _both(half: Array, axis: int) -> Array:
    """Repeats a half to a pair; unlike for `repeat`, the transpose is no reduction."""
    sides = [[(0, 0, 0)] * half.ndim, [(0, 0, 0)] * half.ndim]
    sides[0][axis], sides[1][axis] = (0, 1, 0), (1, 0, 0)
    return sum(lax.pad(half, np.zeros((), half.dtype), side) for side in sides)


def _signs(pair: Array, axis: int) -> np.ndarray:
    shape = [1] * pair.ndim
    shape[axis] = 2
    return np.array([1, -1], pair.dtype).reshape(shape)
