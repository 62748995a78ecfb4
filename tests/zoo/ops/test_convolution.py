"""The zoo's convolution and its derivatives, held to XLA's own."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from convolution_cases import (
    CASES,
    TRANSPOSED,
    assert_close,
    assert_same_derivatives,
    make_arrays,
    pad,
    pairs,
)

from zoo.ops import convolution_cpu, winograd
from zoo.ops.convolution import convolve, convolve_transposed

SMALL = ("1x1_stride_2", "3x3_stride_2_even", "5x5_groups_2", "depthwise_twice")
ALL = [(CASES, name) for name in CASES] + [(TRANSPOSED, name) for name in TRANSPOSED]
every_case = pytest.mark.parametrize(
    ("names", "name"), ALL, ids=[f"{'t_' * (n is TRANSPOSED)}{name}" for n, name in ALL]
)


@every_case
def test_values_and_derivatives_are_xlas(names, name, cheap_jit):
    assert_same_derivatives(names[name], names, cheap_jit)


@pytest.fixture
def traced_anew():
    """Forgets what was traced under other constants, before and after."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.quick
@pytest.mark.usefixtures("traced_anew")
@pytest.mark.parametrize("large", [False, True])
def test_winograds_convolution_of_few_images_at_a_time(monkeypatch, cheap_jit, large):
    monkeypatch.setattr(winograd, "GROUP_BYTES", 1)
    monkeypatch.setattr(convolution_cpu, "WINOGRAD_IMAGE", 1 if large else 10**6)
    assert_same_derivatives(CASES["winograd_odd"], CASES, cheap_jit)


IN_STRIPS = (
    "3x3",
    "3x3_stride_2_odd",
    "7x7_stride_2",
    "11x11_stride_4",
    "without_padding_column_more",
    "5x5_groups_2",
    "dilation_4",
    "asymmetric",
    "negative_padding",
    "much_padded",
    "all_of_the_image",
)


@pytest.fixture
def in_strips(monkeypatch, traced_anew):
    """Has patches made of so few rows at a time as there can be."""
    monkeypatch.setattr(convolution_cpu, "PATCH_BYTES", 1)


@pytest.mark.quick
@pytest.mark.usefixtures("in_strips")
@pytest.mark.parametrize("name", IN_STRIPS)
def test_kernels_gradients_of_few_rows_at_a_time(name, cheap_jit):
    assert_same_derivatives(CASES[name], CASES, cheap_jit)


def test_winograds_rounding_is_that_of_direct_sums():
    case = ((1, 16, 16, 512), (3, 3, 512, 64), dict(padding=pad(1)))
    x, kernel, _, _ = make_arrays(case)
    exact = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    exact = sum(
        exact[:, i : i + 16, j : j + 16] @ np.asarray(kernel, np.float64)[i, j]
        for i in range(3)
        for j in range(3)
    )
    assert_close(convolve(x, kernel, **case[2]), exact.astype(np.float32), 2e-6)


@pytest.mark.quick
@pytest.mark.parametrize("channels", [4, 32])
def test_a_symbolic_batch(channels):
    shape = jax.export.symbolic_shape(f"b, 12, 12, {channels}")
    x, kernel, _, _ = make_arrays(((3, 12, 12, channels), (3, 3, channels, 32)))

    @jax.jit
    def f(x, kernel):
        loss = lambda *a: jnp.sum(convolve(*a, padding=pad(1)))  # noqa: E731
        return convolve(x, kernel, padding=pad(1)), jax.grad(loss, (0, 1))(x, kernel)

    exported = jax.export.export(f)(
        jax.ShapeDtypeStruct(shape, jnp.float32),
        jax.ShapeDtypeStruct(kernel.shape, jnp.float32),
    )
    assert_close(exported.call(x, kernel), f(x, kernel))


@pytest.mark.quick
def test_random_windows_are_xlas(cheap_jit):
    assert_random_windows(cheap_jit, seed=1)


@pytest.mark.quick
@pytest.mark.usefixtures("in_strips")
def test_random_windows_of_few_rows_at_a_time_are_xlas(cheap_jit):
    assert_random_windows(cheap_jit, seed=2)


def assert_random_windows(cheap_jit, seed):
    random = np.random.default_rng(seed)
    for _ in range(12):
        size, strides, dilation = random.integers(1, 4, (3, 2)).tolist()
        groups, per_group = random.integers(1, 4, 2).tolist()
        padding = random.integers(0, 3, (2, 2)).tolist()
        kernel = (*size, per_group, groups * 2)
        options = dict(strides=strides, dilation=dilation, padding=padding)
        case = ((2, 9, 8, groups * per_group), kernel, dict(**options, groups=groups))
        assert_same_derivatives(case, CASES, cheap_jit)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (1, 0)], ids=str)
def test_vmap(name, axes):
    ours, theirs = pairs(CASES[name], CASES)
    x, kernel, _, _ = make_arrays(CASES[name])
    x, kernel = (
        a if axis is None else jnp.stack([a, a + 1, 2 * a], axis)
        for a, axis in zip((x, kernel), axes, strict=True)
    )

    def gradients(f):
        def loss(x, kernel):
            return jnp.sum(jnp.square(jax.vmap(f, axes)(x, kernel)))

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, kernel)

    assert_close(gradients(ours), gradients(theirs))


@pytest.mark.parametrize("name", SMALL)
def test_without_jit_and_with_remat(name):
    ours, theirs = pairs(CASES[name], CASES)
    x, kernel, _, _ = make_arrays(CASES[name])

    def gradients(f):
        return jax.grad(lambda *a: jnp.sum(jnp.square(f(*a))), (0, 1))(x, kernel)

    assert_close(gradients(ours), gradients(theirs))
    assert_close(gradients(jax.checkpoint(ours)), gradients(theirs))


@pytest.mark.usefixtures("in_strips")
def test_bfloat16_is_summed_in_float32_over_few_rows_at_a_time():
    test_bfloat16_is_summed_in_float32("3x3")


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_is_summed_in_float32(name):
    shape, kernel, options = CASES[name]
    case = ((64, *shape[1:]), kernel, options)
    ours, theirs = pairs(case, CASES)
    x, kernel, _, _ = make_arrays(case, jnp.bfloat16)

    def gradients(f, *arrays):
        loss = lambda *a: jnp.sum(f(*a).astype(jnp.float32))  # noqa: E731
        return jax.jit(jax.grad(loss, (0, 1)))(*arrays)

    found = (ours(x, kernel), *gradients(ours, x, kernel))
    assert {a.dtype for a in found} == {jnp.dtype(jnp.bfloat16)}
    wide = x.astype(jnp.float32), kernel.astype(jnp.float32)
    exact = (theirs(*wide), *gradients(theirs, *wide))
    # One rounding to 8 bits; sums of bfloat16 would be wrong by several percent.
    assert_close(found, [a.astype(jnp.bfloat16) for a in exact], 2**-7)


@pytest.mark.parametrize("name", ["3x3", "winograd"])
def test_an_accelerator_gets_xlas_convolution(name):
    x, kernel, _, _ = make_arrays(CASES[name])

    def gradient(f):
        loss = jax.grad(lambda *a: jnp.sum(jnp.square(f(*a))), (0, 1))
        traced = jax.jit(loss).trace(x, kernel)
        return traced.lower(lowering_platforms=("cuda",)).as_text()

    ours, theirs = (gradient(f) for f in pairs(CASES[name], CASES))
    assert "stablehlo.while" not in ours
    assert "stablehlo.dot_general" not in ours
    assert ours.count("stablehlo.convolution") == theirs.count("stablehlo.convolution")


def test_torch_agrees_on_transposed_convolutions():
    torch = pytest.importorskip("torch")
    x, kernel, _, _ = make_arrays(((2, 5, 6, 4), (3, 3, 4, 3)))
    found = convolve_transposed(x, kernel, strides=(2, 2), crop=((1, 0), (1, 0)))
    expected = torch.nn.functional.conv_transpose2d(
        torch.tensor(np.asarray(x.transpose(0, 3, 1, 2))),
        torch.tensor(np.asarray(kernel.transpose(2, 3, 0, 1))),
        stride=2,
        padding=1,
        output_padding=1,
    )
    assert_close(found, expected.permute(0, 2, 3, 1).numpy())


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
