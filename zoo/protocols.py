"""How published accuracies were measured: which parts of an image a network sees.

protocol = zoo.protocols.get_protocol("ten_crop")
for views in protocol.views(image, preprocess):  # uint8 [V, H, W, C], for each scale
    logits = model.apply(variables, zoo.normalize(views, preprocess))
    by_scale.append(zoo.protocols.mean_probabilities(logits))

A protocol cuts views out of an image on the host. An image's probabilities are the mean
of the network's over all views, which is the mean over the scales.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from zoo.preprocess import check_image, crop_centre, resize_image, scale_image
from zoo.registry import unknown
from zoo.spec import Preprocess

# The longer sides that dense evaluation keeps are multiples of this.
DENSE_STEP = 32


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One way to look at an image.

    Attributes:
      name: Of the protocol.
      paper: Authors, year and section.
      scales: Lengths of the image's shorter side, in pixels, at each of which it is
        looked at; none for that of the network's preprocessing.
      cut: From an image uint8 [h, w, C] at one of the scales and what the network takes
        to views uint8 [V, H, W, C].
      views_per_scale: How many views `cut` makes.
      cropped: Whether the views have the network's size; else it must take any.
    """

    name: str
    paper: str
    scales: tuple[int, ...]
    cut: Callable[[np.ndarray, Preprocess], np.ndarray]
    views_per_scale: int
    cropped: bool = True

    @property
    def count(self) -> int:
        """How many views of an image there are, over all scales."""
        return self.views_per_scale * max(1, len(self.scales))

    def views(
        self, image: np.ndarray | Image.Image, preprocess: Preprocess
    ) -> list[np.ndarray]:
        """Cuts the views out of an image.

        Args:
          image: uint8 [h, w, channels] of any size, or a Pillow image of mode "L" or
            "RGB".
          preprocess: What the network takes.

        Returns:
          uint8 [views_per_scale, H, W, channels] for each scale.

        Raises:
          ValueError: The image is none that the network takes; or see `check`.
        """
        self.check(preprocess)
        array = check_image(image, preprocess)
        filter_ = preprocess.interpolation
        return [
            self.cut(scale_image(array, scale, filter_), preprocess)
            for scale in self._scales(preprocess)
        ]

    def check(self, preprocess: Preprocess) -> None:
        """Raises where the network's images do not fit into those of a scale.

        Raises:
          ValueError: Names the scale and the network's size.
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
      name: A name of `PROTOCOLS`.
      scales: Lengths of the shorter side, in pixels; none for the protocol's own.

    Raises:
      ValueError: There is none of that name (the message has the nearest ones), or a
        scale is not positive.
    """
    if name not in PROTOCOLS:
        raise ValueError(unknown("protocol", name, PROTOCOLS))
    if any(scale < 1 for scale in scales):
        raise ValueError(f"scales={(*scales,)} must be 1 pixel or more.")
    protocol = PROTOCOLS[name]
    return dataclasses.replace(protocol, scales=tuple(scales) or protocol.scales)


def mean_probabilities(logits: jax.Array) -> jax.Array:
    """Joins what a network says of several views: the mean of the softmax.

    Args:
      logits: [..., V, K].

    Returns:
      float32 [..., K]. Scales have equally many views, so that the mean over scales of
      these means is the mean over all views.
    """
    return jax.nn.softmax(logits.astype(jnp.float32)).mean(axis=-2)


def _centre(image: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    return crop_centre(image, preprocess.size, preprocess.size)[None]


def _ten(image: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """The corners and the centre of the square in the image's middle, and mirrored.

    torchvision's TenCrop takes the corners of the whole image, which the paper had cut
    to a square before.
    """
    side = min(image.shape[:2])
    square = crop_centre(image, side, side)
    return _with_mirror(_corners_and_centre(square, preprocess.size))


def _googlenet(image: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Three squares along the longer side; of each the corners, the centre, the whole.

    All of that mirrored, too.
    """
    height, width = image.shape[:2]
    side, size = min(height, width), preprocess.size
    top, left = height - side, width - side
    views = []
    for y, x in ((0, 0), (round(top / 2), round(left / 2)), (top, left)):
        square = image[y : y + side, x : x + side]
        whole = resize_image(square, (size, size), preprocess.interpolation)
        views += [*_corners_and_centre(square, size), whole]
    return _with_mirror(views)


def _dense(image: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """The whole image, and mirrored.

    Deviation from the papers: the longer side's ends are cut off, to a multiple of
    `DENSE_STEP` pixels, so that a network is compiled for few shapes.
    """
    shorter = min(image.shape[:2])
    height, width = (
        max(shorter, side // DENSE_STEP * DENSE_STEP) for side in image.shape[:2]
    )
    return _with_mirror([crop_centre(image, height, width)])


def _corners_and_centre(square: np.ndarray, size: int) -> list[np.ndarray]:
    far = len(square) - size
    corners = [(0, 0), (0, far), (far, 0), (far, far)]
    crops = [square[y : y + size, x : x + size] for y, x in corners]
    return [*crops, crop_centre(square, size, size)]


def _with_mirror(views: list[np.ndarray]) -> np.ndarray:
    return np.stack([*views, *(view[:, ::-1] for view in views)])


_RESNET = "He, Zhang, Ren, Sun: Deep Residual Learning, 2015"
_VGG = "Simonyan, Zisserman: Very Deep Convolutional Networks, 2014, section"

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("center_crop", "one view, as most public weights", (), _centre, 1),
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
