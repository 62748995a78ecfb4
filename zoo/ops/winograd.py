"""3x3 convolutions with 2.25 times fewer products, and their gradients.

Winograd's F(2x2, 3x3) makes each 2 x 2 outputs from a tile of 4 x 4 inputs: tile and
kernel become 16 numbers a channel, and each of these is one product of matrices,
[tiles, I] @ [I, O]. In one dimension, of a tile d0 .. d3 and a kernel g0 g1 g2:

    v0, v3 = d0 - d2, d1 - d3              v1, v2 = d2 + d1, d2 - d1
    u0, u3 = g0, g2                        u1, u2 = (g0 + g2 +- g1) / 2
    y0, y1 = m0 + m1 + m2, m1 - m2 - m3    where m = v u

The outer and the inner pair are arrays of their own, and a pair is an axis of length
two. So no transform has to concatenate, which XLA's CPU compiler is slow at.

Reference:
  Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
Padding = tuple[tuple[int, int], tuple[int, int]]

# Transformed tiles of so many images at a time as stay in a shared cache (measured:
# 26 MB are as fast as less, from 34 MB on it takes up to twice the time).
GROUP_BYTES = 7 * 2**22


def convolve_3x3(x: Array, kernel: Array, padding: Padding) -> Array:
    """Cross-correlates at stride 1.

    Args:
      x: [B, H, W, I], float32 or wider.
      kernel: [3, 3, I, O].
      padding: ((above, below), (left, right)), not negative.

    Returns:
      [B, H + above + below - 2, W + left + right - 2, O].
    """
    return _convolve(x, _transform_kernel(kernel), padding, contract=2)


def input_gradient(ct: Array, kernel: Array, padding: Padding) -> Array:
    """The gradient of `convolve_3x3` by x, of padding 2 at most, at a cotangent."""
    padding = tuple((2 - low, 2 - high) for low, high in padding)
    return _convolve(ct, _transform_kernel(kernel[::-1, ::-1]), padding, contract=3)


def kernel_gradient(ct: Array, x: Array, padding: Padding) -> Array:
    """The gradient of `convolve_3x3` by the kernel, at a cotangent, of few images."""
    x, ct = _pad_to_tiles(x, padding), _pad_even(ct)
    pairs = zip(_transform_tiles(x), _spread(ct), strict=True)
    a, b, c, d = (_product(v, m, 2, 2) for v, m in pairs)
    return _taps(_taps(a, b, 1), _taps(c, d, 1), 0)


def _convolve(x: Array, kernels: list[Array], padding: Padding, contract: int) -> Array:
    features = kernels[0].shape[5 - contract]
    height, width = _result_size(x, padding)
    few = images_at_a_time(x, padding, features)
    x = _pad_to_tiles(x, padding)

    def of_few(x: Array) -> Array:
        pairs = zip(_transform_tiles(x), kernels, strict=True)
        a, b, c, d = (_product(v, u, 3, contract) for v, u in pairs)
        y = _gather(_gather(a, b, 1), _gather(c, d, 1), 0)
        b, h, w = x.shape[0], x.shape[1] // 2 - 1, x.shape[2] // 2 - 1
        y = y.reshape(2, 2, b, h, w, features).transpose(2, 3, 0, 4, 1, 5)
        return y.reshape(b, 2 * h, 2 * w, features)

    if few == x.shape[0]:
        y = of_few(x)
    else:
        y = lax.map(of_few, x.reshape(-1, few, *x.shape[1:]))
        y = y.reshape(x.shape[0], *y.shape[2:])
    return y[:, :height, :width]


def images_at_a_time(x: Array, padding: Padding, features: int) -> int:
    """The largest divisor of the batch whose transformed tiles fit."""
    height, width = _result_size(x, padding)
    numbers = 16 * -(-height // 2) * -(-width // 2) * (x.shape[3] + features)
    return largest_divisor(x.shape[0], GROUP_BYTES // (numbers * x.dtype.itemsize))


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of a number that is no more than the limit, or 1."""
    return max(
        n for n in range(1, number + 1) if number % n == 0 and n <= max(limit, 1)
    )


def _result_size(x: Array, padding: Padding) -> tuple[int, int]:
    return tuple(
        n + sum(sides) - 2 for n, sides in zip(x.shape[1:3], padding, strict=True)
    )


def _pad_to_tiles(x: Array, padding: Padding) -> Array:
    """Adds the padding, and what makes the numbers of outputs even."""
    (above, below), (left, right) = padding
    height, width = _result_size(x, padding)
    sides = (above, below + height % 2), (left, right + width % 2)
    return jnp.pad(x, ((0, 0), *sides, (0, 0)))


def _pad_even(ct: Array) -> Array:
    return jnp.pad(ct, ((0, 0), (0, ct.shape[1] % 2), (0, ct.shape[2] % 2), (0, 0)))


def _phases(x: Array) -> Array:
    """Rows and columns by their parity: [2, 2, B, H / 2, W / 2, C]."""
    b, h, w, channels = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, channels)
    return x.transpose(2, 4, 0, 1, 3, 5)


def _product(a: Array, b: Array, contract_a: int, contract_b: int) -> Array:
    dims = ((contract_a,), (contract_b,)), ((0, 1), (0, 1))
    return lax.dot_general(a, b, dims)


# Transforms along one axis, from or to a pair of pairs. Where they are adjoint to one
# another, sums of the one are signs of the other.


def _transform_tiles(x: Array) -> list[Array]:
    """Padded images to v: four of [2, 2, tiles, C]."""
    phases = _phases(x)
    rows = _tile_pairs(phases, 0)
    pairs = (v for row in rows for v in _tile_pairs(row, 1))
    return [v.reshape(2, 2, -1, x.shape[3]) for v in pairs]


def _tile_pairs(phases: Array, axis: int) -> tuple[Array, Array]:
    here = lax.slice_in_dim(phases, 0, -1, axis=axis + 3)
    beyond = lax.slice_in_dim(phases, 1, None, axis=axis + 3)
    d1, d2 = _halves(here, axis)[1], _halves(beyond, axis)[0]
    return here - beyond, d2 + _signs(phases, axis) * d1


def _transform_kernel(kernel: Array) -> list[Array]:
    """A kernel to u: four of [2, 2, I, O]."""
    rows = _kernel_pairs(kernel, 0)
    return [u for row in rows for u in _kernel_pairs(row, 1)]


def _kernel_pairs(kernel: Array, axis: int) -> tuple[Array, Array]:
    g0, g1, g2 = (lax.slice_in_dim(kernel, i, i + 1, axis=axis) for i in range(3))
    outer = lax.slice_in_dim(kernel, 0, 3, 2, axis=axis)
    return outer, (g0 + g2) / 2 + _signs(outer, axis) * (g1 / 2)


def _taps(outer: Array, inner: Array, axis: int) -> Array:
    """The adjoint of `_kernel_pairs`."""
    (u0, u3), (u1, u2) = _halves(outer, axis), _halves(inner, axis)
    half = (u1 + u2) / 2
    return jnp.concatenate([u0 + half, (u1 - u2) / 2, u3 + half], axis)


def _gather(outer: Array, inner: Array, axis: int) -> Array:
    """Products m to outputs y, of the same axis."""
    signs = _signs(outer, axis)
    first, second = _halves(inner, axis)
    return signs * outer + first + signs * second


def _spread(ct: Array) -> list[Array]:
    """The adjoint of `_gather`, of images in both directions: four [2, 2, tiles, O]."""

    def pairs(y: Array, axis: int) -> tuple[Array, Array]:
        first, second = _halves(y, axis)
        signs = _signs(y, axis)
        return signs * y, first + signs * second

    both = (m for row in pairs(_phases(ct), 0) for m in pairs(row, 1))
    return [m.reshape(2, 2, -1, ct.shape[3]) for m in both]


def _halves(pair: Array, axis: int) -> tuple[Array, Array]:
    return tuple(lax.slice_in_dim(pair, i, i + 1, axis=axis) for i in range(2))


def _signs(pair: Array, axis: int) -> np.ndarray:
    shape = [1] * pair.ndim
    shape[axis] = 2
    return np.array([1, -1], pair.dtype).reshape(shape)
