"""From uint8 faces, or photographs with landmarks, to descriptors."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax

from zoo.cpu import jit_inference
from zoo.face import alignment
from zoo.face.deepface import DeepFaceBackbone
from zoo.face.verification import EPSILON, feature_maximum, normalize_features
from zoo.layers import Classifier
from zoo.preprocess import check_batch, normalize, resize_center_crop_batch
from zoo.spec import Preprocess

Array = jax.Array


def make_describer(
    model: Classifier,
    preprocess: Preprocess,
    *,
    align: str = "none",
    flip: bool = False,
    epsilon: float = EPSILON,
) -> Callable[..., Array]:
    """Makes the jitted function from uint8 images to descriptors of faces.

    A descriptor is the output of F7, divided by its largest values in training and
    scaled to unit length: the inner product of two measures how similar the faces are.

    Args:
      model: A DeepFace network, with or without a head.
      preprocess: The preprocessing of the variables, such as `card.preprocess`.
      align: "none" for faces that are already aligned, or centered as in training; "2d"
        or "3d" for photographs with landmarks.
      flip: Whether to average F7 over each face and its mirror image.
      epsilon: Lower bound of the values that features are divided by.

    Returns:
      `describe(variables, images, landmarks=None) -> descriptors`. Images are uint8
      [B, h, w, channels] all of one size, landmarks float32 [B, L, 2] in their pixels
      (see `zoo.face.alignment`), descriptors float32 [B, D]. The program is compiled
      for each image size.

    Raises:
      ValueError: The model is another network, or an option is out of range. `describe`
        raises it for images or landmarks of the wrong type or shape, and for variables
        of another network.

    Reference:
      Taigman et al., DeepFace, 2014, section 3, "Normalization".
    """
    if not isinstance(getattr(model, "backbone", None), DeepFaceBackbone):
        raise ValueError(
            f"make_describer takes a DeepFace network, got {type(model).__name__}; "
            "zoo.list_models(task='verification') names them."
        )
    if align not in ("none", "2d", "3d"):
        raise ValueError(f"align={align!r} must be 'none', '2d' or '3d'.")
    if not epsilon > 0:
        raise ValueError(f"epsilon={epsilon} must be more than 0.")

    @jit_inference
    def describe(
        variables: Mapping[str, Any], images: Array, landmarks: Array | None = None
    ) -> Array:
        check_batch(images, preprocess)
        if (landmarks is None) != (align == "none"):
            has = "none were" if landmarks is None else "some were"
            raise ValueError(f"align={align!r}, and {has} given as landmarks.")
        if landmarks is not None:
            if landmarks.shape[::2] != (images.shape[0], 2):
                raise ValueError(
                    f"landmarks must be [{images.shape[0]}, L, 2], got "
                    f"{list(landmarks.shape)}."
                )
            align_one = partial(alignment.align, method=align, size=preprocess.size)
            images = jax.vmap(align_one)(images, landmarks)
        x = normalize(resize_center_crop_batch(images, preprocess), preprocess)
        features = model.apply(variables, x, method="endpoints")["f7"]
        if flip:
            mirrored = model.apply(variables, x[:, :, ::-1], method="endpoints")["f7"]
            features = 0.5 * (features + mirrored)
        return normalize_features(features, feature_maximum(variables), epsilon)

    return describe
