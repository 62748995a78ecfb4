"""Locally connected layers against PyTorch's unfold, and what they refuse."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import export

from zoo.face.layers import LocallyConnected
from zoo.ops.locally_connected import from_keras, locally_connected, to_keras
from zoo.summary import list_layers

GOLDEN = Path(__file__).parents[2] / "reference" / "golden" / "locally_connected.npz"
# Height, width, kh, kw, inputs, outputs, stride.
CASES = {
    "square": (8, 8, 3, 3, 2, 4, 1),
    "odd": (9, 7, 3, 2, 3, 1, 1),
    "stride 2": (11, 8, 3, 3, 2, 3, 2),
    "stride 3 with a rest": (10, 12, 2, 4, 1, 2, 3),
    "one window": (5, 4, 5, 4, 2, 3, 1),
}


def draw(case, batch=2):
    height, width, kh, kw, inputs, outputs, stride = case
    rng = np.random.default_rng(0)
    rows, columns = (height - kh) // stride + 1, (width - kw) // stride + 1
    x = rng.normal(size=(batch, height, width, inputs)).astype(np.float32)
    kernel = rng.normal(size=(rows, columns, kh, kw, inputs, outputs))
    bias = rng.normal(size=(rows, columns, outputs))
    return x, kernel.astype(np.float32), bias.astype(np.float32), stride


def by_torch(x, kernel, bias, stride):
    """The same by PyTorch's unfold, with the gradients of the sum of squares."""
    rows, columns, kh, kw, inputs, _ = kernel.shape
    x, kernel, bias = (
        torch.tensor(np.float64(value), requires_grad=True)
        for value in (x, kernel, bias)
    )
    patches = torch.nn.functional.unfold(x.permute(0, 3, 1, 2), (kh, kw), stride=stride)
    patches = patches.reshape(len(x), inputs, kh, kw, rows, columns)
    y = torch.einsum("bcijhw,hwijco->bhwo", patches, kernel) + bias
    y.square().sum().backward()
    return y.detach().numpy(), [v.grad.numpy() for v in (x, kernel, bias)]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_output_and_gradients_are_those_of_unfold(case):
    x, kernel, bias, stride = draw(case)
    wanted, gradients = by_torch(x, kernel, bias, stride)

    def loss(x, kernel, bias):
        y = locally_connected(x, kernel, bias, stride=stride)
        return jnp.square(y).sum(), y

    found, y = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(x, kernel, bias)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found, gradients, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-5)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_one_image_is_computed_as_several_are(case):
    """On CPUs it has another formulation, which is that of accelerators."""
    x, kernel, bias, stride = draw(case, batch=1)
    wanted, gradients = by_torch(x, kernel, bias, stride)

    def loss(x, kernel, bias):
        y = locally_connected(x, kernel, bias, stride=stride)
        return jnp.square(y).sum(), y

    found, y = jax.grad(loss, (0, 1, 2), has_aux=True)(x, kernel, bias)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found, gradients, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-5)


@pytest.mark.parametrize("case", ["0", "1"])
def test_golden_file(case):
    with np.load(GOLDEN) as file:
        names = ("x", "kernel", "bias", "stride", "y", "dx", "dkernel")
        x, kernel, bias, stride, *wanted = (file[f"{case}/{name}"] for name in names)

    def loss(x, kernel):
        y = locally_connected(x, kernel, bias, stride=int(stride))
        return jnp.square(y).sum(), y

    gradients, y = jax.grad(loss, (0, 1), has_aux=True)(x, kernel)
    for ours, theirs in zip((y, *gradients), wanted, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-6)


def test_bfloat16_vmap_and_no_batch():
    x, kernel, _, stride = draw(CASES["stride 2"])
    wanted = locally_connected(x, kernel, stride=stride)
    half = locally_connected(
        jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16), stride=stride
    )
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), wanted, atol=0.15)
    kernels = jnp.stack([kernel, 2 * kernel])
    mapped = jax.vmap(lambda k: locally_connected(x, k, stride=stride))(kernels)
    np.testing.assert_allclose(mapped[1], 2 * wanted, rtol=1e-5, atol=1e-5)
    assert locally_connected(x[:0], kernel, stride=stride).shape[0] == 0


def test_symbolic_batch():
    x, kernel, _, stride = draw(CASES["stride 2"], batch=3)
    (batch,) = export.symbolic_shape("b")
    shape = jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
    function = jax.jit(lambda x: locally_connected(x, kernel, stride=stride))
    exported = export.export(function)(shape)
    np.testing.assert_allclose(exported.call(x), function(x), rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "message"),
    [
        ((1, 8, 8, 2), (6, 6, 3, 3, 2), 1, r"kernel must be \[H', W', kh"),
        ((1, 8, 8, 3), (6, 6, 3, 3, 2, 4), 1, r"x must be \[B, H, W, 2\]"),
        ((1, 9, 8, 2), (6, 6, 3, 3, 2, 4), 1, "6 x 6 positions.*7 x 6"),
        ((1, 8, 8, 2), (6, 6, 3, 3, 2, 4), 0, "stride=0"),
        ((1, 2, 8, 2), (1, 6, 3, 3, 2, 4), 1, "3 x 3 does not fit.*2 x 8"),
    ],
)
def test_what_does_not_fit_is_named(shape, kernel, stride, message):
    with pytest.raises(ValueError, match=message):
        locally_connected(jnp.zeros(shape), jnp.zeros(kernel), stride=stride)


def keras_local_conv(x, kernel, bias, window, stride):
    """Keras' `local_conv`, the implementation 1 of `LocallyConnected2D`, in numpy."""
    rows, columns = bias.shape[:2]
    out = np.zeros((len(x), *bias.shape))
    for i in range(rows):
        for j in range(columns):
            top, left = i * stride, j * stride
            patch = x[:, top : top + window[0], left : left + window[1]]
            out[:, i, j] = patch.reshape(len(x), -1) @ kernel[i * columns + j]
    return out + bias


def test_kernels_of_keras():
    x, kernel, bias, stride = draw(CASES["stride 2"])
    theirs = to_keras(kernel)
    assert theirs.shape == (kernel.shape[0] * kernel.shape[1], 3 * 3 * 2, 3)
    wanted = keras_local_conv(x, theirs, bias, (3, 3), stride)
    found = locally_connected(x, kernel, bias, stride=stride)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    back = from_keras(theirs, (3, 3), kernel.shape[:2])
    np.testing.assert_array_equal(back, kernel)
    with pytest.raises(ValueError, match="does not fit window"):
        from_keras(theirs, (3, 4), kernel.shape[:2])


def test_each_position_starts_as_a_layer_of_its_own():
    init = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    layer = LocallyConnected(64, 3, kernel_init=init)
    variables = layer.init(jax.random.key(0), jnp.zeros((1, 6, 6, 8)))
    kernel = variables["params"]["kernel"]
    assert kernel.shape == (4, 4, 3, 3, 8, 64)
    assert variables["params"]["bias"].shape == (4, 4, 64)
    np.testing.assert_allclose(kernel.std((2, 3, 4, 5)), (2 / 72) ** 0.5, rtol=0.05)
    assert not np.allclose(kernel[0, 0], kernel[0, 1])


def test_the_summary_counts_each_weight_once():
    (row,) = list_layers(LocallyConnected(4, 3, stride=2), (7, 9, 2))
    assert row.shape == (3, 4, 4)
    assert row.macs == 3 * 4 * 9 * 2 * 4
