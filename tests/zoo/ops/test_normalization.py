"""Local response normalization against slow numpy and PyTorch's convention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops.normalization import local_response_norm


def slow_norm(x, size, alpha, beta, k):
    """Section 3.3 of the paper, one channel at a time, in float64."""
    x = x.astype(np.float64)
    out = np.zeros_like(x)
    last = x.shape[-1] - 1
    for i in range(x.shape[-1]):
        first, final = max(0, i - size // 2), min(last, i + size // 2)
        energy = sum(x[..., j] ** 2 for j in range(first, final + 1))
        out[..., i] = x[..., i] / (k + alpha * energy) ** beta
    return out


def images(channels, scale=1.0):
    rng = np.random.default_rng(channels)
    return rng.normal(scale=scale, size=(2, 3, 2, channels)).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 4, 9, 96])
def test_the_defaults_are_the_papers(channels):
    # Activations after images of 0 to 255 are large.
    x = images(channels, scale=300)
    expected = slow_norm(x, size=5, alpha=1e-4, beta=0.75, k=2)
    np.testing.assert_allclose(local_response_norm(x), expected, rtol=1e-5)
    # Far from what it would be without a sum, or with alpha divided.
    assert np.abs(expected - slow_norm(x, 5, 2e-5, 0.75, 2)).max() > 10


@pytest.mark.parametrize(
    "how",
    [
        dict(size=1, alpha=0.5, beta=0.5, k=1),
        dict(size=3, alpha=0.1, beta=0.75, k=1.0),
        dict(size=7, alpha=2.0, beta=1.5, k=0.5),
    ],
)
def test_constants(how):
    x = images(6)
    np.testing.assert_allclose(
        local_response_norm(x, **how), slow_norm(x, **how), rtol=1e-5
    )


def test_pytorch_divides_alpha_by_the_size():
    torch = pytest.importorskip("torch")
    x = images(9, scale=50)
    theirs_x = torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True)
    y = torch.nn.functional.local_response_norm(theirs_x, 5, 1e-2, 0.75, 1.0)
    y.square().sum().backward()

    def ours(x):
        return local_response_norm(x, size=5, alpha=1e-2 / 5, beta=0.75, k=1)

    expected = np.moveaxis(y.detach().numpy(), 1, -1)
    np.testing.assert_allclose(ours(x), expected, rtol=1e-5)
    gradient = jax.grad(lambda x: jnp.square(ours(x)).sum())(jnp.asarray(x))
    expected = np.moveaxis(theirs_x.grad.numpy(), 1, -1)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_normalized_in_float32():
    x = jnp.asarray(images(9, scale=300), jnp.bfloat16)
    got = local_response_norm(x)
    assert got.dtype == jnp.bfloat16
    expected = local_response_norm(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("size", [0, 4, -3])
def test_the_window_has_a_middle(size):
    with pytest.raises(ValueError, match=f"size={size}, expected an odd number"):
        local_response_norm(jnp.zeros((1, 4)), size=size)
