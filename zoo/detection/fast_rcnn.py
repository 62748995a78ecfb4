"""Fast R-CNN on VGG-16, and what is common to it and to Faster R-CNN as published.

Boxes of the authors' code have their last pixel in x2 and y2. Here they end behind it,
one pixel further, which changes neither overlaps nor deltas; only where regions are
rounded to the map's pixels is the one subtracted again.

Reference:
  Girshick, Fast R-CNN, 2015.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.checks import check_detector_classes, check_images
from zoo.classification.vgg import CONFIGS, DENSE, WIDTHS
from zoo.detection.contract import Postprocess
from zoo.detection.roi_head import (
    Classifying,
    DenseHead,
    Predictor,
    predictor_rules,
)
from zoo.detection.two_stage import TwoStage
from zoo.layers import Conv, initializer, remat_stage
from zoo.ops.pooling import max_pool
from zoo.ops.roi import roi_max_pool
from zoo.spec import ModelSpec, Preprocess, TorchRule

Array = jax.Array

STRIDE = 16  # Pixels of the image to one of the map.
# Short side 600, long side 1000 at most; 0 to 255, the mean colour subtracted.
SIDES = Preprocess(
    size=600,
    channels=3,
    mean=(122.7717 / 255, 115.9465 / 255, 102.9801 / 255),
    std=(1 / 255,) * 3,
    width=1000,
    resize=600,
    longest=1000,
    fit="sides",
    antialias=False,
)
POSTPROCESS = Postprocess(score_threshold=0.05, iou_threshold=0.3, max_detections=100)
INIT = (
    "the paper starts from a network trained on ImageNet; without one: normal of "
    "variance 2 / (k * k * output channels) as in He et al. 2015; new layers normal, "
    "std 0.01, for boxes 0.001; biases 0"
)
DECODING = "a side grows by a factor of 62.5 at most, where the paper has no limit"
INCLUSIVE = (
    "x2 and y2 are one more than the authors', whose boxes include their last pixel"
)
COLOURS = (
    "channels are red, green, blue as for vgg16; the authors' weights take blue first"
)


class VGGTrunk(nn.Module):
    """VGG-16's convolutions, from conv1_1 to conv5_3; pools round up as in Caffe.

    Attributes:
      network: Whose they are, for messages.
      widths: Channels of each of the five blocks.
      remat: Recompute each block's activations in the backward pass.
    """

    network: str
    widths: tuple[int, ...] = WIDTHS
    kernel_init: Callable = nn.initializers.lecun_normal()
    remat: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        check_images(images, self.network, min_size=STRIDE)
        conv = partial(
            Conv,
            kernel=3,
            padding=1,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

        def block(self, x: Array, i: int) -> dict[str, Array]:
            out = {}
            for j in range(1, len(CONFIGS["D"][i - 1]) + 1):
                x = nn.relu(conv(self.widths[i - 1], name=f"conv{i}_{j}")(x))
                out[f"conv{i}_{j}"] = x
            if i < 5:
                out[f"pool{i}"] = max_pool(x, 2, 2, ceil=True)
            return out

        out, x = {}, images
        for i in range(1, 6):
            out |= remat_stage(partial(block, i=i), self.remat)(self, x)
            x = [*out.values()][-1]
        return out


def pool_regions(levels: Sequence[Array], rois: Array, *, size: int) -> Array:
    """Cuts regions out of a map of stride 16, the largest value of each bin.

    Args:
      levels: One map, [h, w, C].
      rois: [R, 4], xyxy in pixels of the image.
      size: Height and width of a region's map.

    Returns:
      [R, size, size, C].
    """
    rois = rois - jnp.array([[0, 0, 1, 1]], rois.dtype)
    (features,) = levels
    return roi_max_pool(features, rois, output_size=size, spatial_scale=1 / STRIDE)


def fast_rcnn(
    *,
    num_classes: int,
    widths: tuple[int, ...] = WIDTHS,
    dense: int = DENSE,
    dropout: float = 0.5,
    init: str = "he_fan_out",
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    remat: bool = False,
) -> TwoStage:
    """Builds section 2's network on VGG-16, which is given its proposals.

    Args:
      num_classes: Without background.
      widths: Channels of each of VGG-16's five blocks.
      dense: Channels of fc6 and fc7.
      dropout: Rate after the dense layers.
      init: Of VGG-16's layers, a name of `zoo.layers.INITIALIZERS`.
      dtype: Of the computation.
      param_dtype: Of the parameters.
      remat: Trade computation for memory in the backward pass.

    Raises:
      ValueError: `num_classes` is less than 1, or an option is unknown.
    """
    check_detector_classes("fast_rcnn_vgg16", num_classes)
    types = dict(dtype=dtype, param_dtype=param_dtype)
    kernels = dict(kernel_init=initializer(init), **types)
    return TwoStage(
        backbone=VGGTrunk("fast_rcnn_vgg16", tuple(widths), remat=remat, **kernels),
        neck=None,
        rpn=None,
        box_head=DenseHead(dense, dropout=dropout, **kernels),
        predictor=Predictor(num_classes, **types),
        maps=(),
        pooled=("conv5_3",),
        pool=partial(pool_regions, size=7),
        proposing=None,
        classifying=Classifying(negative=(0.1, 0.5), sampled=64, beta=1.0),
        preprocess=SIDES,
        postprocess=POSTPROCESS,
    )


def trunk_rules(model: TwoStage) -> tuple[TorchRule, ...]:
    """VGG-16's layers by the paper's names, without the last."""
    names = [
        f"conv{i}_{j}"
        for i, block in enumerate(CONFIGS["D"], start=1)
        for j in range(1, len(block) + 1)
    ]
    return (
        *(TorchRule(f"backbone/{name}", name) for name in names),
        TorchRule("box_head/fc6", "fc6", flatten=(model.backbone.widths[-1], 7, 7)),
        TorchRule("box_head/fc7", "fc7"),
    )


def _torch_rules(model: TwoStage) -> tuple[TorchRule, ...]:
    return (*trunk_rules(model), *predictor_rules())


SPECS = (
    ModelSpec(
        name="fast_rcnn_vgg16",
        task="detection",
        build=fast_rcnn,
        paper="Girshick: Fast R-CNN, 2015, section 2, model L",
        num_classes=20,
        preprocess=SIDES,
        params=134_690_729,
        macs=183_869_263_872 + 119_967_744,
        torch_rules=_torch_rules,
        loss="roi_class + roi_box",
        reads_regions=True,
        init=INIT,
        published=(
            "VOC 2007 test: 66.9 mAP trained on 07 trainval (68.1 without its "
            "difficult objects), 70.0 on 07+12",
            "VOC 2010 test: 66.1 mAP, 68.8 with more data; VOC 2012 test: 65.7, 68.4",
            "COCO test-dev: 19.7 AP, 35.9 at IoU 0.5",
            "recipe: two images a step, 64 of 2,000 selective-search regions of each; "
            "learning rate 0.001 for 30k steps, 0.0001 for 10k; momentum 0.9, weight "
            "decay 5e-4, flips, conv1 and conv2 frozen",
        ),
        deviations=(
            "deltas are divided by 0.1, 0.1, 0.2, 0.2, as in the authors' later code, "
            "where the paper divides them by their deviations over the training set "
            "and subtracts their means",
            "the objects' own boxes are among the regions that are trained",
            "multiply-adds are counted with one region, and each further one takes "
            "119,967,744",
            DECODING,
            INCLUSIVE,
            COLOURS,
        ),
    ),
)
