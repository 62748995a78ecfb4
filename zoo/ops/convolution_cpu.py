"""Formulations of the convolution that are fast on CPUs.

XLA's CPU compiler computes the gradient of a kernel as a convolution whose window is
the whole image, for which it first transposes both operands from NHWC to CHWN (three to
ten times slower than it need be, by the processor), and it has no parallel code for
groups. Equal formulations avoid both:

* 1x1: a matrix product.
* 3x3 of stride 1, with enough channels: Winograd's tiles, forward and back.
* 3x3 dilated: the same of every d-th pixel, which are images of their own.
* 11x11 of stride 4 on images: a 3x3 one on blocks of 4 x 4 pixels, see above.
* other k x k: the convolution of XLA; its kernel's gradient is a sum, over few images
  or few rows of one at a time, of patches times cotangents.
* groups: one convolution each, concatenated; with one input channel a group
  (depthwise): a sum over taps of shifted products.
* transposed, stride s: a convolution to s * s as many channels, interleaved.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from zoo.ops import winograd
from zoo.ops.convolution_window import (
    Window,
    by_blocks,
    by_phases,
    by_strips,
    convolve_by_xla,
    result,
)

Array = jax.Array
Pair = tuple[int, int]

# A kernel's gradient is summed over rows whose patches take so many bytes together, or
# as many as the kernel, which each sum goes through once (measured).
PATCH_BYTES = 2**21
# Beyond so many bytes of patches their copy, see `_by_xla`, takes long.
COPIED_BYTES = 2**23
# Winograd's convolution pays from so many channels, in and out, and from so many
# pixels in all: transforming a kernel takes as long as convolving some. On images of
# more pixels a channel the transforms take as long as is saved, but for the kernel's
# gradient.
WINOGRAD_CHANNELS = 32
WINOGRAD_PIXELS = 256
WINOGRAD_IMAGE = 128


def convolve(x: Array, kernel: Array, window: Window, groups: int) -> Array:
    """Does what `zoo.ops.convolution.convolve` does, of arguments that fit."""
    if groups == 1:
        if kernel.shape[:2] == (1, 1) and window.padding == ((0, 0), (0, 0)):
            return _pointwise(x, kernel, window)
        if _takes_winograd(x, kernel, window):
            return _winograd(x, kernel, window)
        if _takes_phases(x, kernel, window):
            return by_phases(x, kernel, window, _plain)
        if _takes_blocks(x, kernel, window):
            return by_blocks(x, kernel, window, _plain)
        counted = isinstance(x.shape[0], int) and x.size
        return (_dense if counted else _by_xla)(x, kernel, window)
    if kernel.shape[2] == 1:
        return _depthwise(x, kernel, window)
    parts = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
    return jnp.concatenate([convolve(*part, window, groups=1) for part in parts], -1)


def _plain(x: Array, kernel: Array) -> Array:
    return convolve(x, kernel, Window((1, 1), ((0, 0), (0, 0)), (1, 1)), groups=1)


def _by_xla(x: Array, kernel: Array, window: Window) -> Array:
    """The convolution of XLA, which copies all patches where there is no padding.

    If they are many that takes two to three times as long. So there is some: a column
    of zeros, and of the result, if that gets a column more, one less.
    """
    images = x.shape[0] if isinstance(x.shape[0], int) else 1
    few = images * _patch_bytes(x, kernel, window) < COPIED_BYTES
    if few or window.padding != ((0, 0), (0, 0)):
        return convolve_by_xla(x, kernel, window)
    width = result(x, kernel, window).shape[2]
    window = window._replace(padding=((0, 0), (0, 1)))
    return convolve_by_xla(x, kernel, window)[:, :, :width]


def _pointwise(x: Array, kernel: Array, window: Window) -> Array:
    """A 1x1 convolution as a product of matrices."""
    x = x[:, :: window.strides[0], :: window.strides[1]]
    y = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    # Meant to keep what makes the cotangent out of the products; not measured alone.
    return lax.optimization_barrier(y.reshape(*x.shape[:3], kernel.shape[-1]))


def _depthwise(x: Array, kernel: Array, window: Window) -> Array:
    """A convolution with one input channel a group: products, no sum over channels."""
    wide = _wide(x)
    taps = kernel.astype(wide).reshape(-1, 1, 1, 1, kernel.shape[-1])
    x = jnp.repeat(x.astype(wide), kernel.shape[-1] // x.shape[-1], axis=-1)
    shifted = _shifts(x, kernel.shape[:2], window)
    y = sum(part * tap for part, tap in zip(shifted, taps, strict=True))
    return y.astype(kernel.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _winograd(x: Array, kernel: Array, window: Window) -> Array:
    """A 3x3 convolution with fewer products; on large images its gradient only."""
    if _is_large(x, kernel):
        return _by_xla(x, kernel, window)
    return winograd.convolve_3x3(x, kernel, window.padding)


@partial(_winograd.defjvp, symbolic_zeros=True)
def _winograd_jvp(
    window: Window, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    x, kernel = primals
    dx, dkernel = tangents
    y = _winograd(x, kernel, window)
    dy = jnp.zeros_like(y)
    # Reverse mode transposes the tangent: of an adjoint it gets the gradient itself.
    if not isinstance(dx, SymbolicZero):
        if _is_large(x, kernel):
            dy = _by_xla(dx, kernel, window)
        else:
            options = dict(kernel=kernel, padding=window.padding)
            dy = _adjoint(partial(winograd.input_gradient, **options), y)(dx)
    if not isinstance(dkernel, SymbolicZero):
        few = winograd.images_at_a_time(x, window.padding, kernel.shape[3])

        def of_few(images: Array, dkernel: Array) -> Array:
            options = dict(x=images, padding=window.padding)
            example = jnp.zeros((len(images), *y.shape[1:]), y.dtype)
            return _adjoint(partial(winograd.kernel_gradient, **options), example)(
                dkernel
            )

        dy = dy + _tangent_by_kernel(of_few, few, x, dkernel)
    return y, dy


def _adjoint(f: Callable, example: Array) -> Callable:
    """The adjoint of a linear function of arrays like the example."""
    # jax 0.7 has no `linear_transpose` of loops, but their derivatives.
    pull = jax.vjp(f, jnp.zeros_like(example))[1]
    return lambda ct: pull(ct)[0]


def _takes_winograd(x: Array, kernel: Array, window: Window) -> bool:
    batch, height, width, channels = x.shape
    if kernel.shape[:2] != (3, 3) or window.strides + window.dilation != (1, 1, 1, 1):
        return False
    if not isinstance(batch, int) or not all(
        0 <= p <= 2 for p in sum(window.padding, ())
    ):
        return False
    wide = x.dtype == _wide(x) and min(channels, kernel.shape[3]) >= WINOGRAD_CHANNELS
    return wide and batch * height * width >= WINOGRAD_PIXELS


def _is_large(x: Array, kernel: Array) -> bool:
    return x.shape[1] * x.shape[2] > WINOGRAD_IMAGE * min(kernel.shape[2:])


def _takes_phases(x: Array, kernel: Array, window: Window) -> bool:
    """Whether Winograd's convolution is for a dilated one's phases."""
    (dilation, _), (batch, height, width, channels) = window.dilation, x.shape
    if window.dilation != (dilation, dilation) or dilation == 1 or not x.size:
        return False
    sizes = -(-height // dilation), -(-width // dilation)
    if not isinstance(batch, int) or min(*sizes, *sum(window.padding, ())) < 0:
        return False
    phases = jax.ShapeDtypeStruct((batch * dilation**2, *sizes, channels), x.dtype)
    inside = window._replace(padding=((0, 0), (0, 0)), dilation=(1, 1))
    return _takes_winograd(phases, kernel, inside)


def _takes_blocks(x: Array, kernel: Array, window: Window) -> bool:
    """Whether blocks give Winograd's convolution the channels that images lack."""
    stride, size, channels = window.strides[0], kernel.shape[0], x.shape[3]
    square = kernel.shape[1] == size and window.strides[1] == stride
    if not square or window.dilation != (1, 1) or not isinstance(x.shape[0], int):
        return False
    enough = min(stride**2 * channels, kernel.shape[3]) >= WINOGRAD_CHANNELS
    few = channels <= 4 and size > 2.5 * stride
    return enough and few and -(-size // stride) == 3


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _dense(x: Array, kernel: Array, window: Window) -> Array:
    """XLA's convolution; differentiated by the kernel it is `_by_patches`.

    The two are one function, linear in the kernel. Reverse mode transposes the
    tangent's formulation, and a transposed sum of patches is a sum of patches.
    """
    return _by_xla(x, kernel, window)


@partial(_dense.defjvp, symbolic_zeros=True)
def _dense_jvp(window: Window, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    x, kernel = primals
    dx, dkernel = tangents
    y = _dense(x, kernel, window)
    dy = jnp.zeros_like(y)
    if not isinstance(dx, SymbolicZero):
        dy = _by_xla(dx, kernel, window)
    if not isinstance(dkernel, SymbolicZero):
        # Strips, too, are made anew on the way back, not kept.
        apply = partial(_by_few_patches, window=window)
        dy = dy + jax.checkpoint(apply, prevent_cse=False)(x, dkernel)
    return y, dy


def _by_few_patches(x: Array, kernel: Array, window: Window) -> Array:
    """Does `_by_patches`, transposed, of few images or of a few rows at a time."""
    limit = max(PATCH_BYTES, kernel.size * _wide(x).itemsize)
    size, height = _patch_bytes(x, kernel, window), result(x, kernel, window).shape[1]
    # A strip shares no more rows of the image than it has.
    shared = (kernel.shape[0] - 1) * window.dilation[0] + 1 - window.strides[0]
    least = -(-shared // window.strides[0])
    rows = max(limit * height // size, least, 1)
    if rows < height:
        rows = max(-(-height // -(-height // rows)), least)  # As many in each strip.
        return by_strips(x, kernel, window, rows, _by_few_patches)
    apply = partial(_by_patches, window=window)
    few = winograd.largest_divisor(len(x), limit // size)
    return _tangent_by_kernel(apply, few, x, kernel)


def _tangent_by_kernel(of_few: Callable, few: int, x: Array, dkernel: Array) -> Array:
    """Maps a function of images and a kernel, linear in it, over few images at a time.

    Transposed it is a sum over the images, in which what the function makes of those is
    computed anew: of the whole batch it would fill the memory (and take twice as long).
    """
    of_few = jax.checkpoint(of_few, prevent_cse=False)
    dkernel = dkernel.astype(_wide(x))  # The type that the transposed loop sums in.
    if few == len(x):
        return of_few(x, dkernel)
    groups = x.reshape(-1, few, *x.shape[1:])

    def apply(kernel: Array) -> Array:
        return lax.map(lambda images: of_few(images, kernel), groups)

    # As itself, jax 0.7 could not transpose the loop; as a derivative it can.
    dy = jax.jvp(apply, (jnp.zeros_like(dkernel),), (dkernel,))[1]
    return dy.reshape(len(x), *dy.shape[2:])


def _by_patches(x: Array, kernel: Array, window: Window) -> Array:
    """Multiplies every patch of an image with the kernel."""
    kh, kw, _, features = kernel.shape
    wide = _wide(x)
    matrix = kernel.astype(wide).reshape(-1, features)
    patches = jnp.concatenate([*_shifts(x.astype(wide), (kh, kw), window)], axis=-1)
    y = patches.reshape(-1, len(matrix)) @ matrix
    return y.reshape(*patches.shape[:3], features).astype(x.dtype)


def _patch_bytes(x: Array, kernel: Array, window: Window) -> int:
    """Bytes of an image's patches."""
    pixels = result(x, kernel, window).shape[1:3]
    return math.prod((*pixels, *kernel.shape[:3])) * _wide(x).itemsize


def _shifts(x: Array, size: Pair, window: Window):
    """Yields, tap by tap, the pixels of `x` [B, H, W, C] that the tap meets."""
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *_lows(window), (0, 0, 0)))
    spans = [(k - 1) * d for k, d in zip(size, window.dilation, strict=True)]
    ends = [n - span for n, span in zip(x.shape[1:3], spans, strict=True)]
    for i in range(0, spans[0] + 1, window.dilation[0]):
        for j in range(0, spans[1] + 1, window.dilation[1]):
            rows = slice(i, i + ends[0], window.strides[0])
            columns = slice(j, j + ends[1], window.strides[1])
            yield x[:, rows, columns]


def _lows(window: Window) -> tuple[tuple[int, int, int], ...]:
    return tuple((low, high, 0) for low, high in window.padding)


def convolve_transposed(x: Array, kernel: Array, strides: Pair, crop: tuple) -> Array:
    """A transposed convolution as a convolution: output row `s * q + r` is row q of
    phase r, to which the taps r, r + s, r + 2s, ... contribute."""
    kh, kw, channels, features = kernel.shape
    (sh, sw), (b, h, w, _) = strides, x.shape
    mh, mw = math.ceil(kh / sh), math.ceil(kw / sw)
    kernel = jnp.pad(kernel, ((0, mh * sh - kh), (0, mw * sw - kw), (0, 0), (0, 0)))
    kernel = kernel.reshape(mh, sh, mw, sw, channels, features)[::-1, :, ::-1]
    kernel = kernel.transpose(0, 2, 4, 1, 3, 5).reshape(mh, mw, channels, -1)
    window = Window((1, 1), ((mh - 1, mh - 1), (mw - 1, mw - 1)), (1, 1))
    y = convolve(x, kernel, window, groups=1)
    h, w = h + mh - 1, w + mw - 1
    y = y.reshape(b, h, w, sh, sw, features).transpose(0, 1, 3, 2, 4, 5)
    y = y.reshape(b, h * sh, w * sw, features)
    (top, bottom), (left, right) = crop
    cuts = (-top, kh - mh * sh - bottom, 0), (-left, kw - mw * sw - right, 0)
    return lax.pad(y, jnp.zeros((), y.dtype), ((0, 0, 0), *cuts, (0, 0, 0)))


def _wide(x: Array) -> jnp.dtype:
    """The type that sums are made in."""
    return jnp.promote_types(x.dtype, jnp.float32)
