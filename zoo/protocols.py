"""The protocols by which published accuracies were measured: single and multi crop.

protocol = zoo.protocols.get_protocol("ten_crop")
for views in protocol.views(image, preprocess):  # uint8 [V, H, W, C], for each scale
    logits = model.apply(variables, zoo.normalize(views, preprocess))
    by_scale.append(zoo.protocols.mean_probabilities(logits))

A protocol crops views of an image on the host. The probabilities of an image are the
mean over all views, which is the mean over the scales.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from zoo.paths import unknown
from zoo.preprocess import center_crop, check_image, resize_image, shortest_edge_size
from zoo.spec import Preprocess

# Dense evaluation crops the longer side to a multiple of this number of pixels.
DENSE_STEP = 32


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A set of views of an image.

    Attributes:
      name: Name of the protocol.
      paper: Authors, year and section of the paper.
      scales: Lengths of the shorter side in pixels to which the image is resized; empty
        for that of the network's preprocessing.
      cut: Function from an image uint8 [h, w, C] at one scale and the preprocessing to
        views uint8 [V, H, W, C].
      views_per_scale: Number of views that `cut` returns.
      cropped: Whether the views have the size of the network's input; otherwise the
        network must take any size.
    """

    name: str
    paper: str
    scales: tuple[int, ...]
    cut: Callable[[np.ndarray, Preprocess], np.ndarray]
    views_per_scale: int
    cropped: bool = True

    @property
    def count(self) -> int:
        """The number of views of an image, over all scales."""
        return self.views_per_scale * max(1, len(self.scales))

    def views(
        self, image: np.ndarray | Image.Image, preprocess: Preprocess
    ) -> list[np.ndarray]:
        """Crops the views of an image.

        Args:
          image: uint8 [h, w, channels] of any size, or a Pillow image of mode "L" or
            "RGB".
          preprocess: The preprocessing of the network.

        Returns:
          uint8 [views_per_scale, H, W, channels] for each scale.

        Raises:
          ValueError: The network does not take this image; or see `check`.
        """
        self.check(preprocess)
        array = check_image(image, preprocess)
        views = []
        for scale in self._scales(preprocess):
            size = shortest_edge_size(*array.shape[:2], scale)
            resized = resize_image(array, size, preprocess.interpolation)
            views.append(self.cut(resized, preprocess))
        return views

    def check(self, preprocess: Preprocess) -> None:
        """Checks that the network's input fits into an image at each scale.

        Raises:
          ValueError: A scale is smaller than the network's input.
        """
        smallest = min(self._scales(preprocess))
        if self.cropped and smallest < preprocess.size:
            raise ValueError(
                f"{self.name} makes an image's shorter side {smallest} pixels long, "
                f"and the network takes {preprocess.size}; choose larger scales."
            )

    def _scales(self, preprocess: Preprocess) -> tuple[int, ...]:
        return self.scales or (preprocess.resize or preprocess.size,)


def get_protocol(name: str, scales: Sequence[int] = ()) -> Protocol:
    """Looks up a protocol.

    Args:
      name: Name of the protocol, a key of `PROTOCOLS`.
      scales: Lengths of the shorter side, in pixels; empty for the protocol's.

    Raises:
      ValueError: The name is unknown (the message suggests the nearest ones), or a
        scale is not positive.
    """
    if name not in PROTOCOLS:
        raise ValueError(unknown("protocol", name, PROTOCOLS))
    if any(scale < 1 for scale in scales):
        raise ValueError(f"scales={(*scales,)} must be 1 pixel or more.")
    protocol = PROTOCOLS[name]
    return dataclasses.replace(protocol, scales=tuple(scales) or protocol.scales)


def mean_probabilities(logits: jax.Array) -> jax.Array:
    """Averages the probabilities of the views of an image.

    Args:
      logits: [..., V, K].

    Returns:
      float32 [..., K]. All scales have the same number of views, so that the mean of
      these means over the scales is the mean over all views.
    """
    return jax.nn.softmax(logits.astype(jnp.float32)).mean(axis=-2)


def _center(image: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    return center_crop(image, preprocess.size, preprocess.size)[None]


def _ten(image: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Crops the corners and the center of the central square, and mirrors them.

    torchvision's TenCrop takes the corners of the whole image; in the paper images are
    cropped to a square first.
    """
    side = min(image.shape[:2])
    square = center_crop(image, side, side)
    return _with_mirror(_corners_and_center(square, preprocess.size))


def _googlenet(image: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Crops three squares along the longer side, and views of each, and mirrors them.

    The views are the corners, the center and the resized square.
    """
    height, width = image.shape[:2]
    side, size = min(height, width), preprocess.size
    top, left = height - side, width - side
    views = []
    for y, x in ((0, 0), (round(top / 2), round(left / 2)), (top, left)):
        square = image[y : y + side, x : x + side]
        whole = resize_image(square, (size, size), preprocess.interpolation)
        views += [*_corners_and_center(square, size), whole]
    return _with_mirror(views)


def _dense(image: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Returns the whole image and its mirror image.

    Deviation from the papers: the longer side is cropped to a multiple of `DENSE_STEP`
    pixels, so that a network is compiled for few shapes.
    """
    shorter = min(image.shape[:2])
    height, width = (
        max(shorter, side // DENSE_STEP * DENSE_STEP) for side in image.shape[:2]
    )
    return _with_mirror([center_crop(image, height, width)])


def _corners_and_center(square: np.ndarray, size: int) -> list[np.ndarray]:
    far = len(square) - size
    corners = [(0, 0), (0, far), (far, 0), (far, far)]
    crops = [square[y : y + size, x : x + size] for y, x in corners]
    return [*crops, center_crop(square, size, size)]


def _with_mirror(views: list[np.ndarray]) -> np.ndarray:
    return np.stack([*views, *(view[:, ::-1] for view in views)])


_RESNET = "He, Zhang, Ren, Sun: Deep Residual Learning, 2015"
_VGG = "Simonyan, Zisserman: Very Deep Convolutional Networks, 2014, section"

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("center_crop", "one view, as most public weights", (), _center, 1),
        Protocol(
            "ten_crop",
            "Krizhevsky, Sutskever, Hinton: ImageNet Classification, 2012, sections 2 "
            f"and 4.1; {_RESNET}, section 3.4",
            (256,),
            _ten,
            10,
        ),
        Protocol(
            "googlenet_144",
            "Szegedy et al.: Going Deeper with Convolutions, 2014, section 7",
            (256, 288, 320, 352),
            _googlenet,
            36,
        ),
        *(
            Protocol(name, paper, scales, _dense, 2, cropped=False)
            for name, paper, scales in (
                ("dense", f"{_RESNET}, section 3.4", (224, 256, 384, 480, 640)),
                ("dense_vgg_256", f"{_VGG} 4.2, trained at 256", (224, 256, 288)),
                ("dense_vgg_384", f"{_VGG} 4.2, trained at 384", (352, 384, 416)),
                ("dense_vgg", f"{_VGG} 4.2, trained at 256 to 512", (256, 384, 512)),
            )
        ),
    )
}
