"""Upsampling by integer factors, like transposed convolutions with bilinear kernels."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def bilinear_filter(kernel: int) -> np.ndarray:
    """Returns the kernel of a transposed convolution that interpolates linearly.

    Args:
      kernel: Length of the kernel, twice the stride.

    Returns:
      float64 [kernel], a triangle.
    """
    factor = (kernel + 1) // 2
    center = factor - 1 if kernel % 2 else factor - 0.5
    return 1 - np.abs(np.arange(kernel) - center) / factor


def interpolate(x: Array, stride: int, size: tuple[int, int], offset: int = 0) -> Array:
    """Upsamples like a transposed convolution with a bilinear kernel.

    Args:
      x: [B, H, W, C], float32 or wider.
      stride: Upsampling factor, half the length of the kernel.
      size: Height and width of the result.
      offset: Number of rows and columns removed at the top and on the left.

    Returns:
      [B, size[0], size[1], C].
    """
    taps = bilinear_filter(2 * stride)
    weights = []
    for length, target in zip(x.shape[1:3], size, strict=True):
        # The element of the kernel at each pixel of `x` for each pixel of the result.
        tap = offset + np.arange(target)[:, None] - stride * np.arange(length)
        inside = (tap >= 0) & (tap < len(taps))
        values = np.where(inside, taps[tap.clip(0, len(taps) - 1)], 0)
        weights.append(jnp.asarray(values, x.dtype))
    return jnp.einsum("ph,qw,bhwc->bpqc", *weights, x, precision="highest")
