"""The zoo's convolution on CPUs and its derivatives, held to XLA's own."""

import os
import re
import subprocess
import sys
import textwrap
from collections import Counter
from functools import partial
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from tiny_runs import forced_devices

from zoo import cpu
from zoo.cpu.winograd import convolve_3x3
from zoo.ops.convolution import convolve, convolve_transposed

ROOT = Path(__file__).parents[3]
LAYOUT = ("NHWC", "HWIO", "NHWC")


def pad(number):
    return ((number, number), (number, number))


NONE = pad(0)
# name: (x shape, kernel shape, options)
CASES = {
    "1x1": ((2, 5, 6, 7), (1, 1, 7, 4), dict(strides=(2, 2))),
    "1x1_padded": ((2, 5, 6, 3), (1, 1, 3, 4), dict(padding=pad(1))),
    "3x3": ((3, 7, 8, 4), (3, 3, 4, 5), dict(padding=pad(1), strides=(2, 2))),
    "asymmetric": (
        (2, 6, 7, 3),
        (3, 2, 3, 4),
        dict(padding=((0, 1), (2, 0)), strides=(2, 1), dilation=(1, 2)),
    ),
    "negative_padding": ((2, 8, 8, 3), (3, 3, 3, 4), dict(padding=((-1, 0), (2, -2)))),
    "empty_batch": ((0, 6, 6, 3), (3, 3, 3, 4), dict(padding=pad(1))),
    "groups": ((2, 9, 9, 6), (5, 5, 3, 8), dict(padding=pad(2), groups=2)),
    "1x1_groups": ((2, 5, 5, 6), (1, 1, 3, 4), dict(groups=2)),
    "many_groups": ((2, 5, 5, 16), (3, 3, 1, 32), dict(padding=pad(1), groups=16)),
    "dilated": ((2, 13, 12, 3), (3, 3, 3, 4), dict(padding=pad(4), dilation=(4, 4))),
    "winograd": ((1, 41, 40, 128), (3, 3, 128, 129), dict(padding=((2, 1), (0, 2)))),
}
WINOGRAD = {
    "even": ((2, 6, 4, 5), (3, 3, 5, 4), dict(padding=pad(1))),
    "odd": ((3, 7, 5, 2), (3, 3, 2, 3), dict(padding=((0, 2), (1, 0)))),
    "in_parts": ((16, 64, 66, 16), (3, 3, 16, 16), dict(padding=pad(1))),
}
TRANSPOSED = {
    "2x2": ((2, 4, 5, 6), (2, 2, 6, 3), dict(strides=(2, 2))),
    "3x3_crop": (
        (2, 5, 4, 3),
        (3, 3, 3, 2),
        dict(strides=(2, 2), crop=((1, 0), (1, 0))),
    ),
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
        dimension_numbers=LAYOUT,
        feature_group_count=groups,
    )


def transposed_by_xla(x, kernel, strides=(1, 1), crop=NONE):
    """The adjoint of a convolution; negative crops are zeros beyond its image."""
    (kh, kw), (h, w) = kernel.shape[:2], x.shape[1:3]
    full = (len(x), (h - 1) * strides[0] + kh, (w - 1) * strides[1] + kw)

    def forward(image):
        return by_xla(image, kernel.transpose(0, 1, 3, 2), strides)

    y = jax.vjp(forward, jnp.zeros((*full, kernel.shape[3]), x.dtype))[1](x)[0]
    cuts = [(0, 0, 0), *((-low, -high, 0) for low, high in crop), (0, 0, 0)]
    return lax.pad(y, jnp.zeros((), x.dtype), cuts)


def make_arrays(case, dtype=jnp.float32):
    """Returns x, the kernel, and a change of each."""
    random = np.random.default_rng(0)
    shapes = [case[0], case[1]] * 2
    return [jnp.asarray(random.normal(size=shape), dtype) for shape in shapes]


def assert_close(ours, theirs, tolerance=1e-5):
    """Compares trees of arrays, relative to the largest number of each array."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        scale = np.abs(b).max(initial=1e-30)
        np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=tolerance)


def derivatives(f, x, kernel, dx, dkernel):
    """Returns the value, its tangent, its gradients and a product of its Hessian."""
    weights = jnp.cos(jnp.arange(jax.eval_shape(f, x, kernel).size, dtype=x.dtype))

    def loss(x, kernel):
        y = f(x, kernel)
        return jnp.sum(jnp.square(y) * weights.reshape(y.shape)), y

    def gradient(x, kernel):
        return jax.grad(loss, argnums=(0, 1), has_aux=True)(x, kernel)

    return jax.jvp(gradient, (x, kernel), (dx, dkernel))


@pytest.fixture(
    params=[
        *[("", name) for name in CASES],
        *[("winograd", name) for name in WINOGRAD],
        *[("transposed", name) for name in TRANSPOSED],
    ],
    ids=" ".join,
)
def case(request):
    """Ours, XLA's, and the arrays of a convolution."""
    kind, name = request.param
    cases, ours, theirs = {
        "": (CASES, convolve, by_xla),
        "winograd": (WINOGRAD, convolve_3x3, by_xla),
        "transposed": (TRANSPOSED, convolve_transposed, transposed_by_xla),
    }[kind]
    *_, options = case = cases[name]
    return partial(ours, **options), partial(theirs, **options), make_arrays(case)


def test_values_and_derivatives_are_xlas(case, cheap_jit):
    ours, theirs, arrays = case
    found, expected = (
        cheap_jit(partial(derivatives, f))(*arrays) for f in (ours, theirs)
    )
    assert_close(found, expected)


FEW = {
    "1x1": (convolve, *CASES["1x1"]),
    "groups": (convolve, *CASES["groups"]),
    "winograd": (convolve_3x3, *WINOGRAD["odd"]),
}


@pytest.mark.parametrize("name", FEW)
def test_gradients_of_gradients(name, cheap_jit):
    ours, *shapes, options = FEW[name]
    x, kernel, dx, dkernel = make_arrays(shapes)

    def second(f):
        def along(x, kernel):
            loss = lambda *a: jnp.sum(jnp.sin(f(*a, **options) / 8))  # noqa: E731
            gx, gkernel = jax.grad(loss, (0, 1))(x, kernel)
            return jnp.sum(gx * dx) + jnp.sum(gkernel * dkernel)

        return cheap_jit(jax.grad(along, (0, 1)))(x, kernel)

    assert_close(second(ours), second(by_xla), 5e-5)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("axes", [(0, None), (1, 0)], ids=str)
def test_vmap(name, axes, cheap_jit):
    ours, *shapes, options = FEW[name]
    x, kernel, _, _ = make_arrays(shapes)
    x, kernel = (
        a if axis is None else jnp.stack([a, a + 1], axis)
        for a, axis in zip((x, kernel), axes, strict=True)
    )

    def gradients(f):
        f = jax.vmap(partial(f, **options), axes)
        loss = lambda *a: jnp.sum(jnp.square(f(*a)))  # noqa: E731
        return cheap_jit(jax.value_and_grad(loss, (0, 1)))(x, kernel)

    assert_close(gradients(ours), gradients(by_xla))


@pytest.mark.parametrize("name", ["1x1", "3x3", "groups"])
def test_float64_keeps_its_digits(name, cheap_jit):
    with jax.enable_x64(True):
        arrays = make_arrays(CASES[name], jnp.float64)
        found, expected = (
            cheap_jit(partial(derivatives, partial(f, **CASES[name][2])))(*arrays)
            for f in (convolve, by_xla)
        )
        assert_close(found, expected, 1e-13)


@pytest.mark.parametrize("name", ["1x1", "3x3", "groups"])
def test_bfloat16_is_summed_in_float32(name, cheap_jit):
    shape, kernel, options = CASES[name]
    case = ((16, *shape[1:]), kernel, options)
    x, kernel, _, _ = make_arrays(case, jnp.bfloat16)

    def values(f, *arrays):
        f = partial(f, **options)
        loss = lambda *a: jnp.sum(f(*a).astype(jnp.float32))  # noqa: E731
        run = lambda *a: (f(*a), jax.grad(loss, (0, 1))(*a))  # noqa: E731
        return cheap_jit(run)(*arrays)

    found = values(convolve, x, kernel)
    exact = values(by_xla, x.astype(jnp.float32), kernel.astype(jnp.float32))
    # One rounding to 8 bits; sums of bfloat16 would be wrong by several percent.
    rounded = jax.tree.map(lambda a: a.astype(jnp.bfloat16), exact)
    assert_close(found, rounded, 2**-7)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 2e-6), ("float64", 1e-14)]
)
def test_winograds_rounding_is_that_of_direct_sums(dtype, tolerance):
    with jax.enable_x64(True):
        x, kernel, _, _ = make_arrays(((2, 16, 16, 512), (3, 3, 512, 128)), dtype)
        exact = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
        exact = sum(
            exact[:, i : i + 16, j : j + 16] @ np.asarray(kernel, np.float64)[i, j]
            for i in range(3)
            for j in range(3)
        )
        found = convolve_3x3(x, kernel, pad(1))
    assert_close(found, exact.astype(dtype), tolerance)


def test_winograds_is_chosen_by_the_shapes():
    def operations(*shape):
        x, kernel, _, _ = make_arrays((shape, (3, 3, shape[-1], shape[-1])))
        lowered = jax.jit(partial(convolve, padding=pad(1))).lower(x, kernel)
        return lowered.as_text()

    assert "stablehlo.convolution" not in operations(1, 28, 28, 512)
    assert "stablehlo.convolution" in operations(8, 28, 28, 128)
    assert "stablehlo.convolution" in operations(8, 56, 56, 16)


@pytest.mark.parametrize("size", [1, 3])
def test_symbolic_batch(size):
    shape = jax.export.symbolic_shape("b, 12, 12, 128")
    x, kernel, _, _ = make_arrays(((2, 12, 12, 128), (size, size, 128, 128)))

    @jax.jit
    def f(x, kernel):
        loss = lambda *a: jnp.sum(convolve(*a, padding=pad(1)))  # noqa: E731
        return convolve(x, kernel, padding=pad(1)), jax.grad(loss, (0, 1))(x, kernel)

    exported = jax.export.export(f)(
        jax.ShapeDtypeStruct(shape, jnp.float32),
        jax.ShapeDtypeStruct(kernel.shape, jnp.float32),
    )
    assert_close(exported.call(x, kernel), f(x, kernel))


@pytest.mark.parametrize("name", ["1x1", "3x3", "groups", "winograd"])
def test_accelerator_gets_xlas_convolution_alone(name):
    x, kernel, _, _ = make_arrays(CASES[name])

    def count_operations(f):
        f = partial(f, **CASES[name][2])
        loss = jax.jit(jax.grad(lambda *a: jnp.sum(jnp.square(f(*a))), (0, 1)))
        lowered = loss.trace(x, kernel).lower(lowering_platforms=("cuda",))
        return Counter(re.findall(r"stablehlo\.\w+", lowered.as_text()))

    found, expected = count_operations(convolve), count_operations(by_xla)
    assert found["stablehlo.convolution"] == expected["stablehlo.convolution"]
    # The choice by platform, of one branch, which the compiler removes.
    assert {*found} - {*expected} <= {"stablehlo.case", "stablehlo.return"}


PARALLEL = """
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    from zoo.ops.convolution import convolve

    SHAPES = [(3, 3, 4, 128), (3, 3, 128, 128), (1, 1, 128, 4), (3, 3, 2, 4)]
    mesh = Mesh(np.array(jax.devices()), ("data",))
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(8, 6, 6, 4)), jnp.float32)
    kernels = [
        jnp.asarray(random.normal(size=shape) / 3, jnp.float32)
        for shape in SHAPES
    ]

    def loss(kernels, x):
        for kernel in kernels:
            padding = ((kernel.shape[0] // 2,) * 2,) * 2
            groups = x.shape[-1] // kernel.shape[2]
            x = jnp.tanh(convolve(x, kernel, padding=padding, groups=groups))
        return jnp.sum(x)

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    one = step(kernels, x)
    sharded = jax.device_put(x, NamedSharding(mesh, P("data")))
    replicated = jax.device_put(kernels, NamedSharding(mesh, P()))
    by_gspmd = step(replicated, sharded)

    def local(kernels, x):
        value, (dkernels, dx) = jax.value_and_grad(loss, argnums=(0, 1))(kernels, x)
        return jax.lax.psum(value, "data"), (dkernels, dx)

    specs = dict(in_specs=(P(), P("data")), out_specs=(P(), (P(), P("data"))))
    mapped = jax.jit(jax.shard_map(local, mesh=mesh, **specs))
    by_shard_map = mapped(replicated, sharded)
    for many in (by_gspmd, by_shard_map):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    print("agree on", len(jax.devices()))
"""


def test_data_parallel_gradients_are_those_of_one_device():
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PARALLEL)],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": forced_devices(2), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.stdout == "agree on 2\n", ran.stderr


@pytest.mark.parametrize(
    ("kernel", "options", "message"),
    [
        ((3, 3, 4, 5), {}, "takes 4 channels"),
        ((3, 3, 3, 5), dict(groups=2), "takes 6 channels"),
        ((9, 9, 3, 5), {}, "larger than x"),
        ((3, 3, 3), {}, "takes x"),
    ],
)
def test_errors_say_what_does_not_fit(kernel, options, message):
    with pytest.raises(ValueError, match=message):
        convolve(jnp.zeros((1, 8, 8, 3)), jnp.zeros(kernel), **options)


def test_gradients_in_loops_have_the_layout_that_is_fast():
    """XLA transposes operands to it, but only outside of loops."""
    x, kernel, _, _ = make_arrays(CASES["3x3"])

    def loss(x, kernel):
        return jnp.square(convolve(x, kernel, padding=pad(1), strides=(2, 2))).sum()

    def body(total, x):
        gradients = jax.grad(loss, (0, 1))(x, kernel)
        return jax.tree.map(jnp.add, total, gradients), None

    def run(images):
        return lax.scan(body, (jnp.zeros_like(x), jnp.zeros_like(kernel)), images)[0]

    images = jnp.stack([x, x])
    options = cpu.compiler_options(training=True)
    compiled = jax.jit(run).lower(images).compile(options)
    layouts = re.findall(r"dim_labels=(\S+?),? ", compiled.as_text())
    assert len(layouts) == 3
    assert {*layouts} == {"b01f_01io->b01f"}
    for total, once in zip(
        compiled(images), jax.grad(loss, (0, 1))(x, kernel), strict=True
    ):
        np.testing.assert_allclose(total, 2 * once, rtol=1e-4, atol=1e-4)
