"""Fast R-CNN on VGG-16, and the parts that Faster R-CNN on VGG-16 shares with it.

In the authors' code x2 and y2 are the last pixel of a box. Here they are one larger,
the end of that pixel, which changes neither overlaps nor deltas. The 1 is subtracted
again where regions are rounded to the pixels of a feature map.

Reference:
  Girshick, Fast R-CNN, 2015.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.checks import check_detector_classes, check_images, check_widths
from zoo.classification.vgg import CONFIGS, DENSE, WIDTHS
from zoo.detection.roi_heads import DenseHead, Predictor, RoIHeadConfig, predictor_rules
from zoo.detection.two_stage import TwoStage
from zoo.detection.types import DetectorConfig, Postprocess
from zoo.layers import Conv, remat_stage
from zoo.ops.pooling import max_pool
from zoo.ops.roi import roi_max_pool
from zoo.spec import Card, ModelSpec, Preprocess, TorchRule

Array = jax.Array

STRIDE = 16  # Pixels of the image for each pixel of the feature map.
# Shorter side 600, longer side at most 1000; 0 to 255, the mean color subtracted.
PREPROCESS = Preprocess(
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
# The deviations from the papers that Fast and Faster R-CNN share.
DEVIATIONS = (
    "a side grows by a factor of 62.5 at most, where the paper has no limit",
    "x2 and y2 are one more than the authors', whose boxes include their last pixel",
    "channels are red, green, blue as for vgg16; the authors' weights take blue first",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FastRCNNConfig(DetectorConfig):
    """Options of Fast R-CNN on VGG-16.

    Attributes:
      widths: Number of channels of each of VGG-16's five blocks.
      dense: Number of outputs of fc6 and fc7.
      dropout: Dropout rate after the dense layers.
    """

    widths: tuple[int, ...] = WIDTHS
    dense: int = DENSE
    dropout: float = 0.5


class VGGTrunk(nn.Module):
    """VGG-16's convolutions, conv1_1 to conv5_3, with pools that round up as in Caffe.

    Attributes:
      label: Name of the network, for error messages.
      config: The options of the network.
    """

    label: str
    config: FastRCNNConfig = FastRCNNConfig()

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        config = self.config
        check_images(images, self.label, min_size=STRIDE)
        conv = partial(
            Conv, kernel=3, padding=1, kernel_init=config.kernel_init, **config.dtypes
        )

        def block(self, x: Array, i: int) -> dict[str, Array]:
            out = {}
            for j in range(1, len(CONFIGS["D"][i - 1]) + 1):
                x = nn.relu(conv(config.widths[i - 1], name=f"conv{i}_{j}")(x))
                out[f"conv{i}_{j}"] = x
            if i < 5:
                out[f"pool{i}"] = max_pool(x, 2, 2, ceil=True)
            return out

        out, x = {}, images
        for i in range(1, 6):
            out |= remat_stage(partial(block, i=i), config.remat)(self, x)
            x = [*out.values()][-1]
        return out


def roi_pool(levels: Sequence[Array], rois: Array, *, size: int) -> Array:
    """Pools regions from a feature map of stride 16 by the maximum of each bin.

    Args:
      levels: One feature map [h, w, C].
      rois: [R, 4], xyxy in pixels of the image.
      size: Height and width of the result.

    Returns:
      [R, size, size, C].
    """
    rois = rois - jnp.array([[0, 0, 1, 1]], rois.dtype)
    (features,) = levels
    return roi_max_pool(features, rois, output_size=size, spatial_scale=1 / STRIDE)


def fast_rcnn(*, num_classes: int, **options: Any) -> TwoStage:
    """Builds the network of section 2 on VGG-16, which takes proposals as an input.

    Args:
      num_classes: Number of classes, without background.
      **options: Fields of `FastRCNNConfig`.

    Raises:
      ValueError: `num_classes` is less than 1, or an option is unknown.
    """
    name, config = "fast_rcnn_vgg16", FastRCNNConfig(**options)
    check_detector_classes(name, num_classes)
    check_widths(config.widths, len(WIDTHS))
    return TwoStage(
        backbone=VGGTrunk(name, config),
        neck=None,
        rpn=None,
        box_head=vgg_head(config),
        predictor=Predictor(num_classes, **config.dtypes),
        rpn_endpoints=(),
        roi_endpoints=("conv5_3",),
        roi_pool=partial(roi_pool, size=7),
        rpn_config=None,
        roi_config=RoIHeadConfig(
            bg_iou_thresh=(0.1, 0.5), batch_size_per_image=64, smooth_l1_beta=1.0
        ),
        preprocess=PREPROCESS,
        postprocess=POSTPROCESS,
    )


def vgg_head(config: FastRCNNConfig) -> DenseHead:
    """Builds the dense layers of VGG-16."""
    return DenseHead(
        config.dense,
        dropout=config.dropout,
        kernel_init=config.kernel_init,
        **config.dtypes,
    )


def trunk_rules(model: TwoStage) -> tuple[TorchRule, ...]:
    """Returns the rules for the authors' names of VGG-16's layers up to fc7."""
    names = [
        f"conv{i}_{j}"
        for i, block in enumerate(CONFIGS["D"], start=1)
        for j in range(1, len(block) + 1)
    ]
    return (
        *(TorchRule(f"backbone/{name}", name) for name in names),
        TorchRule(
            "box_head/fc6", "fc6", flatten=(model.backbone.config.widths[-1], 7, 7)
        ),
        TorchRule("box_head/fc7", "fc7"),
    )


def _torch_rules(model: TwoStage) -> tuple[TorchRule, ...]:
    return (*trunk_rules(model), *predictor_rules())


def from_classifier(
    variables: Mapping[str, Any], card: Card
) -> tuple[dict[str, Any], Preprocess]:
    """Moves the dense layers of a classifier to the head that reads regions.

    Args:
      variables: {"params": ...} of a classifier with fc6 and fc7.
      card: The card of the variables.

    Returns:
      The variables, and the preprocessing that they expect.
    """
    params = dict(variables["params"])
    backbone = dict(params.get("backbone", {}))
    dense = {name: backbone.pop(name) for name in ("fc6", "fc7") if name in backbone}
    params |= {"backbone": backbone, "box_head": dense}
    return {**variables, "params": params}, card.preprocess


SPECS = (
    ModelSpec(
        name="fast_rcnn_vgg16",
        task="detection",
        build=fast_rcnn,
        config=FastRCNNConfig,
        paper="Girshick: Fast R-CNN, 2015, section 2, model L",
        num_classes=20,
        preprocess=PREPROCESS,
        params=134_690_729,
        macs=183_869_263_872 + 119_967_744,
        torch_rules=_torch_rules,
        from_classifier=from_classifier,
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
            *DEVIATIONS,
        ),
    ),
)
