"""Random augmentation of the colors of training images on the device.

Each function takes a random key and one RGB image [height, width, 3], 0 to 255, of any
numeric type; use `jax.vmap` with a key for each image of a batch. It returns float32,
which is not rounded before the network. Only `photometric` and `ssd_photometric` clip.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

# The principal components of the colors of ImageNet: each column is a unit vector times
# its eigenvalue. The eigenvalues are those of the covariance of values from 0 to 1, as
# their sum is the variance of three channels of standard deviation 0.28.
# fb.resnet.torch, which published them, adds the noise to such values before it divides
# them by the standard deviation. Here values are 0 to 255.
IMAGENET_COLORS = 255.0 * np.array(
    [
        [-0.5675 * 0.2175, 0.7192 * 0.0188, 0.4009 * 0.0045],
        [-0.5808 * 0.2175, -0.0045 * 0.0188, -0.8140 * 0.0045],
        [-0.5836 * 0.2175, -0.6948 * 0.0188, 0.4203 * 0.0045],
    ]
)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601, as Pillow's "L"


def pca_color(
    key: jax.Array,
    image: jax.Array,
    components: jax.Array | np.ndarray = IMAGENET_COLORS,
    *,
    std: float = 0.1,
) -> jax.Array:
    """Adds a random color along the principal components of a data set's colors.

    Args:
      key: Random key.
      image: [height, width, 3], RGB, 0 to 255.
      components: float [3, 3] from `pca_of_colors`.
      std: Standard deviation of the normal factor of each component.

    Returns:
      float32 [height, width, 3], not clipped.

    Reference: Krizhevsky et al., ImageNet Classification with Deep Convolutional Neural
    Networks, 2012, section 4.1.
    """
    _check_color("pca_color", image, std)
    factors = std * jax.random.normal(key, (3,))
    # Not a matrix product, which accelerators compute with fewer bits.
    color = (jnp.asarray(components, jnp.float32) * factors[None]).sum(-1)
    return image.astype(jnp.float32) + color[None, None]


def pca_of_colors(images: Iterable[np.ndarray]) -> np.ndarray:
    """Computes the principal components of the colors of images, for `pca_color`.

    Args:
      images: uint8 [height, width, 3] of any sizes, such as a generator over a data
        set.

    Returns:
      float64 [3, 3], for values 0 to 255 like `IMAGENET_COLORS`: column i is the unit
      eigenvector i times its eigenvalue, the largest first.

    Raises:
      ValueError: An image has another shape, or there is none.
    """
    count, total, products = 0, np.zeros(3), np.zeros((3, 3))
    for image in images:
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(
                f"pca_of_colors takes images [height, width, 3], got {image.shape}."
            )
        colors = image.reshape(-1, 3) / 255
        count += len(colors)
        total += colors.sum(0)
        products += colors.T @ colors
    if not count:
        raise ValueError("pca_of_colors needs at least one image.")
    mean = total / count
    values, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
    return 255 * (vectors * values)[:, ::-1]


def color_jitter(
    key: jax.Array,
    image: jax.Array,
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
) -> jax.Array:
    """Changes brightness, contrast and saturation in random order.

    Each change blends the image with another one, `f * image + (1 - f) * other`, with f
    uniform from 1 - amount to 1 + amount: with black, with the mean of its grayscale
    version, and with its grayscale version.

    Args:
      key: Random key.
      image: [height, width, 3], RGB, 0 to 255.
      brightness: Amount, 0 or more.
      contrast: Amount, 0 or more.
      saturation: Amount, 0 or more.

    Returns:
      float32 [height, width, 3], not clipped.

    Reference: datasets/transforms.lua of fb.resnet.torch.
    """
    return _jitter("color_jitter", key, image, (brightness, contrast, saturation))


def photometric(key: jax.Array, image: jax.Array, *, amount: float = 0.5) -> jax.Array:
    """Applies `color_jitter`, and clips to 0 to 255 after each change.

    Pillow's enhancements, which the paper used, clip in this way; the paper applies
    `pca_color` after them.

    Args:
      key: Random key.
      image: [height, width, 3], RGB, 0 to 255.
      amount: Amount of all three changes, 0 or more.

    Returns:
      float32 [height, width, 3], 0 to 255.

    Reference: Howard, Some Improvements on Deep Convolutional Neural Network Based
    Image Classification, 2013, which GoogLeNet cites for its photometric distortions.
    """
    return _jitter("photometric", key, image, (amount,) * 3, clip=True)


def ssd_photometric(
    key: jax.Array,
    image: jax.Array,
    *,
    brightness: float = 32,
    contrast: float = 0.5,
    saturation: float = 0.5,
    hue: float = 18,
) -> jax.Array:
    """Distorts colors as in the training of SSD, each change with probability 1/2.

    In this order: a constant is added; the contrast is changed by a factor of all
    values, either here or at the end with equal probability; saturation and hue are
    changed in HSV. Values are clipped to 0 to 255 after each change.

    Args:
      key: Random key.
      image: [height, width, 3], RGB, 0 to 255.
      brightness: Maximum absolute value of the constant.
      contrast: Maximum deviation of the contrast's factor from 1.
      saturation: Maximum deviation of the saturation's factor from 1.
      hue: Maximum absolute change of the hue, in OpenCV's units of two degrees.

    Returns:
      float32 [height, width, 3], 0 to 255.

    Reference: Liu et al., SSD: Single Shot MultiBox Detector, 2016, section 2.2, and
    its released code (`distort_param`).
    """
    amounts = (brightness, contrast, saturation, hue)
    _check_color("ssd_photometric", image, *amounts)
    key_which, key_amounts = jax.random.split(key)
    *which, first = jax.random.bernoulli(key_which, shape=(5,))
    draws = jax.random.uniform(key_amounts, (4,), minval=-1.0)
    shift, contrast_by, saturate_by, turn = (
        jnp.where(do, draw * amount, 0)
        for do, draw, amount in zip(which, draws, amounts, strict=True)
    )
    image = _clip(image.astype(jnp.float32) + shift)
    image = _clip(image * jnp.where(first, 1 + contrast_by, 1))
    image = _rotate_hue(_saturate(image, 1 + saturate_by), 2 * turn)
    return _clip(image * jnp.where(first, 1, 1 + contrast_by))


def _saturate(image, factor):
    """Multiplies the saturation in HSV, up to 1; hue and value are kept."""
    value = image.max(-1, keepdims=True)
    range_ = value - image.min(-1, keepdims=True)
    most = value / jnp.where(range_ > 0, range_, 1)
    return value - jnp.clip(factor, 0, jnp.maximum(most, 1)) * (value - image)


def _rotate_hue(image, degrees):
    """Rotates the hue in HSV; saturation and value are kept."""
    value, least = image.max(-1), image.min(-1)
    range_ = jnp.where(value > least, value - least, 1)
    red, green, blue = jnp.moveaxis(image, -1, 0)
    # In sixths of a turn, starting at red.
    hue = jnp.where(
        value == red,
        (green - blue) / range_,
        jnp.where(
            value == green, 2 + (blue - red) / range_, 4 + (red - green) / range_
        ),
    )
    hue = hue + degrees / 60
    sixths = (hue[..., None] + jnp.array([5.0, 3.0, 1.0])[None, None]) % 6
    share = jnp.clip(jnp.minimum(sixths, 4 - sixths), 0, 1)
    return value[..., None] - (value - least)[..., None] * share


def _clip(image):
    return jnp.clip(image, 0, 255)


def _jitter(name, key, image, amounts, clip=False):
    """Blends with black (0), the mean gray (1) and the grayscale image (2)."""
    _check_color(name, image, *amounts)
    image = image.astype(jnp.float32)
    key_order, key_factors = jax.random.split(key)
    order = jax.random.permutation(key_order, 3)
    draws = jax.random.uniform(key_factors, (3,), minval=-1.0)
    factors = 1 + draws * jnp.asarray(amounts)
    for i in range(3):
        gray = (image * _LUMA[None, None]).sum(-1, keepdims=True)
        other = jnp.where(order[i] == 1, gray.mean(), gray)
        other = jnp.where(order[i] == 0, 0.0, other)
        factor = factors[order[i]]
        image = factor * image + (1 - factor) * other
        image = jnp.clip(image, 0, 255) if clip else image
    return image


def _check_color(name, image, *amounts):
    if image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(
            f"{name} takes an RGB image [height, width, 3], got {list(image.shape)}."
        )
    if min(amounts) < 0:
        raise ValueError(f"{name}: amounts {amounts}, expected 0 or more.")
