"""Convolutions to try, what XLA makes of them, and comparison of all derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from zoo.ops.convolution import convolve, convolve_transposed


def pad(number):
    return ((number, number), (number, number))


NONE = pad(0)
HALF = dict(strides=(2, 2))
HALVED = dict(padding=pad(1), **HALF)


# name: (x shape, kernel shape, options)
CASES = {
    "1x1": ((2, 5, 6, 7), (1, 1, 7, 4), {}),
    "1x1_stride_2": ((2, 5, 6, 7), (1, 1, 7, 4), dict(strides=(2, 2))),
    "1x1_padded": ((2, 5, 6, 3), (1, 1, 3, 4), dict(padding=pad(1))),
    "3x3": ((3, 6, 5, 4), (3, 3, 4, 5), dict(padding=pad(1))),
    "3x3_stride_2_even": ((2, 8, 8, 4), (3, 3, 4, 5), HALVED),
    "3x3_stride_2_odd": ((2, 7, 9, 4), (3, 3, 4, 5), HALVED),
    "7x7_stride_2": (
        (2, 16, 15, 3),
        (7, 7, 3, 8),
        dict(padding=pad(3), strides=(2,) * 2),
    ),
    "11x11_stride_4": ((2, 31, 31, 3), (11, 11, 3, 4), dict(strides=(4, 4))),
    "11x11_in_blocks": ((3, 63, 65, 3), (11, 11, 3, 32), dict(strides=(4, 4))),
    "11x11_in_padded_blocks": (
        (2, 64, 62, 3),
        (11, 11, 3, 33),
        dict(strides=(4, 4), padding=((2, 1), (0, 3))),
    ),
    "without_padding": ((4, 44, 45, 16), (5, 5, 16, 8), {}),
    "without_padding_stride_2": ((4, 90, 91, 16), (5, 5, 16, 8), HALF),
    "without_padding_column_more": ((4, 91, 92, 16), (5, 5, 16, 8), HALF),
    "5x5_groups_2": ((2, 9, 9, 6), (5, 5, 3, 8), dict(padding=pad(2), groups=2)),
    "3x3_groups_32": ((2, 5, 5, 64), (3, 3, 2, 64), dict(**HALVED, groups=32)),
    "1x1_groups_2": ((2, 5, 5, 6), (1, 1, 3, 4), dict(groups=2)),
    "depthwise": ((2, 6, 7, 5), (3, 3, 1, 5), dict(padding=pad(1), groups=5)),
    "depthwise_twice": ((2, 6, 7, 5), (3, 3, 1, 10), dict(**HALVED, groups=5)),
    "dilation_2": ((2, 9, 9, 3), (3, 3, 3, 4), dict(padding=pad(2), dilation=(2, 2))),
    "dilation_2_winograd": (
        (2, 13, 16, 32),
        (3, 3, 32, 33),
        dict(padding=((2, 1), (0, 3)), dilation=(2, 2)),
    ),
    "dilation_4_winograd": (
        (1, 21, 18, 32),
        (3, 3, 32, 32),
        dict(padding=pad(4), dilation=(4, 4)),
    ),
    "dilation_4": (
        (2, 13, 12, 3),
        (3, 2, 3, 4),
        dict(padding=pad(4), dilation=(4, 3), strides=(2, 1)),
    ),
    "asymmetric": (
        (2, 6, 7, 3),
        (3, 2, 3, 4),
        dict(padding=((0, 1), (2, 0)), strides=(2, 1)),
    ),
    "negative_padding": ((2, 8, 8, 3), (3, 3, 3, 4), dict(padding=((-1, 0), (2, -2)))),
    "batch_1_channel_1": ((1, 8, 8, 1), (3, 3, 1, 1), dict(padding=pad(1))),
    "all_of_the_image": ((3, 4, 4, 2), (4, 4, 2, 3), {}),
    "empty_batch": ((0, 6, 6, 3), (3, 3, 3, 4), dict(padding=pad(1))),
    "empty_batch_1x1": ((0, 6, 6, 3), (1, 1, 3, 4), {}),
    "much_padded": ((2, 5, 4, 3), (2, 3, 3, 4), dict(padding=pad(3))),
    "prime_batch": ((7, 5, 5, 3), (3, 3, 3, 4), {}),
    "winograd": ((2, 12, 12, 32), (3, 3, 32, 32), dict(padding=pad(1))),
    "winograd_odd": (
        (3, 9, 11, 32),
        (3, 3, 32, 33),
        dict(padding=((0, 2), (1, 0))),
    ),
}
TRANSPOSED = {
    "2x2_stride_2": ((2, 4, 5, 6), (2, 2, 6, 3), dict(strides=(2, 2))),
    "4x4_stride_2": ((2, 5, 4, 3), (4, 4, 3, 5), dict(strides=(2, 2), crop=pad(1))),
    "3x3_stride_2": (
        (2, 5, 4, 3),
        (3, 3, 3, 2),
        dict(strides=(2, 2), crop=((1, 0), (1, 0))),
    ),
    "stride_1": ((2, 5, 5, 3), (3, 3, 3, 2), dict(crop=pad(1))),
    "stride_above_kernel": ((2, 3, 3, 2), (1, 2, 2, 3), dict(strides=(3, 3))),
    "rows_differ": (
        (1, 3, 4, 1),
        (5, 2, 1, 2),
        dict(strides=(3, 1), crop=((2, 1), (0, 1))),
    ),
    "negative_crop": (
        (2, 3, 3, 2),
        (2, 2, 2, 3),
        dict(strides=(2, 2), crop=((0, -1),) * 2),
    ),
    "empty_batch": ((0, 4, 4, 2), (2, 2, 2, 3), dict(strides=(2, 2))),
}


def by_xla(x, kernel, strides=(1, 1), padding=NONE, dilation=(1, 1), groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def transposed_by_xla(x, kernel, strides=(1, 1), crop=NONE):
    """The adjoint of a convolution; negative crops are zeros beyond its image."""
    (kh, kw), (h, w) = kernel.shape[:2], x.shape[1:3]
    full = (len(x), (h - 1) * strides[0] + kh, (w - 1) * strides[1] + kw)
    shape = (*full, kernel.shape[3])

    def forward(image):
        return by_xla(image, kernel.transpose(0, 1, 3, 2), strides)

    y = jax.vjp(forward, jnp.zeros(shape, x.dtype))[1](x)[0]
    cuts = [(0, 0, 0), *((-low, -high, 0) for low, high in crop), (0, 0, 0)]
    return lax.pad(y, jnp.zeros((), x.dtype), cuts)


def make_arrays(case, dtype=jnp.float32):
    """Returns x, the kernel, a change of each, and random numbers for the output."""
    random = np.random.default_rng(0)
    shapes = [case[0], case[1]] * 2
    x, kernel, dx, dkernel = (
        jnp.asarray(random.normal(size=shape), dtype) for shape in shapes
    )
    return x, kernel, dx, dkernel


def assert_close(ours, theirs, tolerance=1e-5):
    """Compares trees of arrays, relative to the largest number of each array."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        scale = np.abs(b).max(initial=1e-30)
        np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=tolerance)


def pairs(case, names):
    """The function of a case, ours and XLA's."""
    if names is CASES:
        return partial(convolve, **case[2]), partial(by_xla, **case[2])
    return partial(convolve_transposed, **case[2]), partial(
        transposed_by_xla, **case[2]
    )


def derivatives(f, x, kernel, dx, dkernel):
    """The value, its tangent, its gradients, and a product of its Hessian."""
    y, dy = jax.jvp(f, (x, kernel), (dx, dkernel))
    weights = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)

    def loss(x, kernel):
        return jnp.sum(jnp.square(f(x, kernel)).astype(jnp.float32) * weights)

    gradient = jax.grad(loss, argnums=(0, 1))
    forward_over_reverse = jax.jvp(gradient, (x, kernel), (dx, dkernel))

    def along(x, kernel):
        gx, gkernel = gradient(x, kernel)
        return jnp.sum(gx * dx) + jnp.sum(gkernel * dkernel)

    reverse_over_reverse = jax.grad(along, argnums=(0, 1))(x, kernel)
    return y, dy, forward_over_reverse, reverse_over_reverse


def assert_same_derivatives(case, names, jit):
    arrays = make_arrays(case)
    found, expected = (
        jit(partial(derivatives, f))(*arrays) for f in pairs(case, names)
    )
    assert_close(found, expected)
