"""Upsampling by whole factors, as transposed convolutions with a bilinear kernel do."""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def bilinear_filter(kernel: int) -> np.ndarray:
    """The triangle by which a transposed convolution interpolates, float64 [kernel].

    Its stride is half the kernel's length.
    """
    factor = (kernel + 1) // 2
    centre = factor - 1 if kernel % 2 else factor - 0.5
    return 1 - np.abs(np.arange(kernel) - centre) / factor


def interpolate(x: Array, stride: int, size: tuple[int, int], offset: int = 0) -> Array:
    """Does what a transposed convolution with a bilinear kernel does, without kernel.

    Args:
      x: [B, H, W, C], float32 or wider.
      stride: Pixels of the result to one of `x`; half the kernel's length.
      size: Height and width of the result.
      offset: Rows and columns that are cut off, above and on the left.

    Returns:
      [B, size[0], size[1], C].
    """
    taps = bilinear_filter(2 * stride)
    weights = []
    for length, target in zip(x.shape[1:3], size, strict=True):
        # Which tap of the kernel at each pixel of `x` meets each one of the result.
        tap = offset + np.arange(target)[:, None] - stride * np.arange(length)
        inside = (tap >= 0) & (tap < len(taps))
        values = np.where(inside, taps[tap.clip(0, len(taps) - 1)], 0)
        weights.append(jnp.asarray(values, x.dtype))
    return jnp.einsum("ph,qw,bhwc->bpqc", *weights, x, precision="highest")
