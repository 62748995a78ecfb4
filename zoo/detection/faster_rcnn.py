"""Faster R-CNN, as published on VGG-16 and ResNet-101, and on a feature pyramid.

References:
  Ren, He, Girshick, Sun, Faster R-CNN: Towards Real-Time Object Detection with Region
  Proposal Networks, 2015.
  He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, 2015, appendix A.
  Lin, Dollár, Girshick, He, Hariharan, Belongie, Feature Pyramid Networks for Object
  Detection, 2017, section 4.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from zoo.checks import check_detector_classes, check_widths
from zoo.classification.imagenet import IMAGENET
from zoo.classification.resnet import INIT as RESNET_INIT
from zoo.classification.resnet import (
    Bottleneck,
    ResNetBackbone,
    ResNetConfig,
    backbone_rules,
)
from zoo.detection import fast_rcnn
from zoo.detection.coco import CLASS_NAMES
from zoo.detection.fpn import FPN
from zoo.detection.roi_heads import (
    DenseHead,
    Predictor,
    RoIHeadConfig,
    StageHead,
    predictor_rules,
)
from zoo.detection.rpn import RPN, RPNConfig
from zoo.detection.two_stage import TwoStage
from zoo.detection.types import DetectorConfig, Postprocess
from zoo.layers import INITIALIZERS
from zoo.ops.anchors import make_anchors, rpn_anchors
from zoo.ops.roi import multiscale_roi_align
from zoo.spec import ModelSpec, TorchRule, Weights

Array = jax.Array

PAPER = (
    "Ren, He, Girshick, Sun: Faster R-CNN: Towards Real-Time Object Detection with "
    "Region Proposal Networks, 2015"
)
FPN_PAPER = (
    "Lin, Dollár, Girshick, He, Hariharan, Belongie: Feature Pyramid Networks for "
    "Object Detection, 2017"
)
LOSS = "rpn_objectness + rpn_box + roi_class + roi_box"
ASPECT_RATIOS = (0.5, 1.0, 2.0)
WINDOW = 7  # Height and width of a region's feature map in a pyramid.
# Shorter side 800, longer side at most 1333; the example is a photograph of 4 : 3.
FPN_PREPROCESS = dataclasses.replace(
    IMAGENET,
    size=800,
    width=1088,
    resize=800,
    longest=1333,
    fit="sides",
    antialias=False,
)
FPN_POSTPROCESS = Postprocess(
    score_threshold=0.05, iou_threshold=0.5, max_detections=100, min_size=1e-2
)


def pyramid_anchors(sizes: Sequence[int]) -> tuple:
    """Makes the `cell_anchors` of a feature pyramid.

    Args:
      sizes: The square root of the anchors' area at each level, in pixels.
    """
    cells = (make_anchors((size,), ASPECT_RATIOS).tolist() for size in sizes)
    return tuple(tuple(map(tuple, cell)) for cell in cells)


def paper_anchors(scales: Sequence[int]) -> tuple:
    """Makes the `cell_anchors` of the paper's networks.

    Args:
      scales: Side lengths of the square anchors in units of the stride.
    """
    cell = rpn_anchors(fast_rcnn.STRIDE, scales=scales)
    cell = cell + np.array([0, 0, 1, 1], np.float32)
    return (tuple(map(tuple, cell.tolist())),)


# The anchors of the published networks for PASCAL VOC and for COCO.
PAPER_ANCHORS = {
    "voc": paper_anchors((8, 16, 32)),
    "coco": paper_anchors((4, 8, 16, 32)),
}
_PUBLISHED = (
    RPNConfig(
        cell_anchors=PAPER_ANCHORS["voc"],
        stride=fast_rcnn.STRIDE,
        pre_nms_top_n_train=12000,
        pre_nms_top_n_test=6000,
        post_nms_top_n_train=2000,
        post_nms_top_n_test=300,
        min_size=16,
        ignore_cross_boundary=True,
    ),
    RoIHeadConfig(batch_size_per_image=128, smooth_l1_beta=1.0),
)
# The parameters of both stages of each network.
CONFIGS: dict[str, tuple[RPNConfig, RoIHeadConfig]] = {
    "faster_rcnn_vgg16": _PUBLISHED,
    "faster_rcnn_resnet101_c4": _PUBLISHED,
    "faster_rcnn_resnet50_fpn": (
        RPNConfig(cell_anchors=pyramid_anchors((32, 64, 128, 256, 512))),
        RoIHeadConfig(),
    ),
    "faster_rcnn_small": (
        RPNConfig(
            cell_anchors=pyramid_anchors((24, 48)),
            pre_nms_top_n_train=256,
            pre_nms_top_n_test=128,
            post_nms_top_n_train=128,
            post_nms_top_n_test=64,
            batch_size_per_image=64,
        ),
        RoIHeadConfig(batch_size_per_image=64),
    ),
}


def pyramid_roi_align(
    levels: Sequence[Array],
    rois: Array,
    *,
    canonical_size: int,
    canonical_level: int,
) -> Array:
    """Pools each region from the level of a feature pyramid that suits its size.

    Args:
      levels: The feature maps [h, w, C] of one image, from level 2 on.
      rois: [R, 4], xyxy in pixels of the image.
      canonical_size: Side length in pixels of a region that is pooled from the
        canonical level.
      canonical_level: Number of that level.

    Returns:
      [R, 7, 7, C].
    """
    return multiscale_roi_align(
        levels,
        rois,
        strides=[2 ** (2 + i) for i in range(len(levels))],
        output_size=WINDOW,
        sampling_ratio=2,
        canonical_size=canonical_size,
        canonical_level=canonical_level,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VGG16Config(fast_rcnn.FastRCNNConfig):
    """Options of Faster R-CNN on VGG-16.

    Attributes:
      anchors: "voc" for nine anchors at each position, "coco" for the paper's twelve
        for COCO.
    """

    anchors: str = "voc"


@dataclasses.dataclass(frozen=True, kw_only=True)
class C4Config(DetectorConfig):
    """Options of Faster R-CNN on the first stages of a ResNet.

    Attributes:
      anchors: See `VGG16Config`.
      early_stride: Whether the stride of a bottleneck is in its first 1x1 convolution,
        as published, instead of the 3x3 one, as in most public weights.
    """

    anchors: str = "voc"
    early_stride: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class FPNConfig(DetectorConfig):
    """Options of Faster R-CNN with a feature pyramid.

    Attributes:
      frozen: Whether the backbone's batch norm is a fixed affine map, as for a
        pretrained backbone. Use False to train from scratch with large batches.
      epsilon: The epsilon of batch norm.
      momentum: Decay rate of batch norm's running averages.
    """

    frozen: bool = True
    epsilon: float = 1e-5
    momentum: float = 0.9


def faster_rcnn_vgg16(*, num_classes: int, **options: Any) -> TwoStage:
    """Builds the network of section 3 on VGG-16.

    Args:
      num_classes: Number of classes, without background.
      **options: Fields of `VGG16Config`.

    Raises:
      ValueError: `num_classes` is less than 1, or an option is unknown.
    """
    name, config = "faster_rcnn_vgg16", VGG16Config(**options)
    check_widths(config.widths, len(fast_rcnn.WIDTHS))
    return TwoStage(
        backbone=fast_rcnn.VGGTrunk(name, config),
        box_head=fast_rcnn.vgg_head(config),
        roi_pool=partial(fast_rcnn.roi_pool, size=7),
        **_published_parts(name, num_classes, "conv5_3", config),
    )


def faster_rcnn_c4(*, num_classes: int, **options: Any) -> TwoStage:
    """Builds the network of appendix A of the ResNet paper, on ResNet-101.

    Args:
      num_classes: Number of classes, without background.
      **options: Fields of `C4Config`.

    Raises:
      ValueError: `num_classes` is less than 1, or an option is unknown.
    """
    name, config = "faster_rcnn_resnet101_c4", C4Config(**options)
    resnet_config = ResNetConfig(init=config.init, remat=config.remat, **config.dtypes)
    return TwoStage(
        backbone=ResNetBackbone(
            label=name,
            block=Bottleneck,
            blocks=(3, 4, 23),
            config=resnet_config,
            early_stride=config.early_stride,
            frozen=True,
            pooled=False,
        ),
        box_head=StageHead(
            512, 3, config.early_stride, config.kernel_init, **config.dtypes
        ),
        # The last stage halves the resolution.
        roi_pool=partial(fast_rcnn.roi_pool, size=14),
        **_published_parts(name, num_classes, "stage3", config),
    )


def _published_parts(
    name: str, num_classes: int, endpoint: str, config: VGG16Config | C4Config
) -> dict[str, Any]:
    """Returns the arguments of `TwoStage` that both published networks share."""
    check_detector_classes(name, num_classes)
    if config.anchors not in PAPER_ANCHORS:
        raise ValueError(
            f"anchors={config.anchors!r} must be one of {[*PAPER_ANCHORS]}."
        )
    rpn_config, roi_config = CONFIGS[name]
    cells = PAPER_ANCHORS[config.anchors]
    return dict(
        neck=None,
        rpn=RPN(len(cells[0]), 512, two_scores=True, **config.dtypes),
        predictor=Predictor(num_classes, **config.dtypes),
        rpn_endpoints=(endpoint,),
        roi_endpoints=(endpoint,),
        rpn_config=dataclasses.replace(rpn_config, cell_anchors=cells),
        roi_config=roi_config,
        preprocess=fast_rcnn.PREPROCESS,
        postprocess=fast_rcnn.POSTPROCESS,
    )


def faster_rcnn_fpn(*, num_classes: int, **options: Any) -> TwoStage:
    """Builds torchvision's `fasterrcnn_resnet50_fpn`.

    Args:
      num_classes: Number of classes, without background.
      **options: Fields of `FPNConfig`.

    Raises:
      ValueError: `num_classes` is less than 1, or an option is unknown.
    """
    name, config = "faster_rcnn_resnet50_fpn", FPNConfig(**options)
    check_detector_classes(name, num_classes)
    dense, dtypes = INITIALIZERS["torch"], config.dtypes
    rpn_config, roi_config = CONFIGS[name]
    return TwoStage(
        backbone=ResNetBackbone(
            label=name,
            block=Bottleneck,
            blocks=(3, 4, 6, 3),
            config=ResNetConfig(
                init=config.init,
                momentum=config.momentum,
                remat=config.remat,
                **dtypes,
            ),
            frozen=config.frozen,
            epsilon=config.epsilon,
            pooled=False,
        ),
        neck=FPN(("stage1", "stage2", "stage3", "stage4"), (2, 3, 4, 5), **dtypes),
        rpn=RPN(len(ASPECT_RATIOS), **dtypes),
        box_head=DenseHead(1024, WINDOW, **dtypes),
        predictor=Predictor(num_classes, class_init=dense, box_init=dense, **dtypes),
        rpn_endpoints=("p2", "p3", "p4", "p5", "p6"),
        roi_endpoints=("p2", "p3", "p4", "p5"),
        roi_pool=partial(pyramid_roi_align, canonical_size=224, canonical_level=4),
        rpn_config=rpn_config,
        roi_config=roi_config,
        preprocess=FPN_PREPROCESS,
        postprocess=FPN_POSTPROCESS,
    )


def _vgg_rules(model: TwoStage) -> tuple[TorchRule, ...]:
    """Returns the rules for the names of the authors' Caffe."""
    return (*fast_rcnn.trunk_rules(model), *_RPN_RULES, *predictor_rules())


def _c4_rules(model: TwoStage) -> tuple[TorchRule, ...]:
    """Returns the rules: torchvision's names in the ResNet, the authors' elsewhere."""
    rules = backbone_rules(model)
    for block in range(1, model.box_head.blocks + 1):
        ours, theirs = f"box_head/stage4/block{block}", f"layer4.{block - 1}"
        for i in (1, 2, 3):
            rules.append(TorchRule(f"{ours}/conv{i}", f"{theirs}.conv{i}"))
            rules.append(TorchRule(f"{ours}/bn{i}", f"{theirs}.bn{i}"))
        rules.append(TorchRule(f"{ours}/shortcut_conv", f"{theirs}.downsample.0"))
        rules.append(TorchRule(f"{ours}/shortcut_bn", f"{theirs}.downsample.1"))
    return (*rules, *_RPN_RULES, *predictor_rules())


_RPN_RULES = (
    TorchRule("rpn/conv", "rpn_conv/3x3"),
    TorchRule("rpn/cls_logits", "rpn_cls_score"),
    TorchRule("rpn/bbox_pred", "rpn_bbox_pred"),
)


def fpn_rules(model: TwoStage) -> tuple[TorchRule, ...]:
    """Returns the rules for torchvision's names, and for those in its first files.

    Args:
      model: A network with a feature pyramid.
    """
    rules = backbone_rules(model, "backbone.body.")
    for i, level in enumerate(model.neck.levels):
        for ours, theirs in (("lateral", "inner"), ("output", "layer")):
            key = f"backbone.fpn.{theirs}_blocks.{i}"
            rules.append(TorchRule(f"neck/{ours}{level}", f"{key}.0", alias=key))
    conv, head = "rpn.head.conv", "roi_heads.box_head"
    flatten = (model.neck.features, WINDOW, WINDOW)
    return (
        *rules,
        TorchRule("rpn/conv", f"{conv}.0.0", alias=conv),
        TorchRule("rpn/cls_logits", "rpn.head.cls_logits"),
        TorchRule("rpn/bbox_pred", "rpn.head.bbox_pred"),
        TorchRule("box_head/fc6", f"{head}.fc6", flatten=flatten),
        TorchRule("box_head/fc7", f"{head}.fc7"),
        *predictor_rules("roi_heads.box_predictor."),
    )


_COCO = Weights(
    name="coco",
    url="https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
    sha256="258fb6c6",
    accuracy="box AP 37.0 % of COCO's 5,000 validation images of 2017",
    source="torchvision",
    licence="BSD-3-Clause",
    class_names=CLASS_NAMES,
    # They were trained with batch norm without epsilon.
    options=(("epsilon", 0.0),),
)

_PAPER_DEVIATIONS = (
    "both losses of the first stage are divided by the number of sampled anchors, as "
    "in the authors' code, where the paper's equation 1 divides that of the boxes by "
    "the number of positions and multiplies it by 10",
    "proposals have 16 pixels of the resized image at least, where the authors' have "
    "16 of the original one",
    *fast_rcnn.DEVIATIONS,
)

SPECS = (
    ModelSpec(
        name="faster_rcnn_vgg16",
        task="detection",
        build=faster_rcnn_vgg16,
        config=VGG16Config,
        paper=f"{PAPER}, section 3",
        num_classes=20,
        preprocess=fast_rcnn.PREPROCESS,
        params=137_078_239,
        macs=225_573_931_008,
        torch_rules=_vgg_rules,
        from_classifier=fast_rcnn.from_classifier,
        loss=LOSS,
        init=fast_rcnn.INIT,
        published=(
            "VOC 2007 test: 69.9 mAP trained on 07 trainval, 73.2 on 07+12, 78.8 with "
            "COCO before (4-step training, 300 proposals)",
            "VOC 2012 test: 67.0 mAP trained on 12, 70.4 on 07++12, 75.9 with COCO "
            "before",
            "COCO: 21.2 AP (41.5 at IoU 0.5) of train on val, 21.9 (42.7) of trainval "
            "on test-dev, with twelve anchors",
            "recipe of the authors' joint training: 70k steps of one image, two to an "
            "update, learning rate 0.001, from step 50k 0.0001, momentum 0.9, weight "
            "decay 5e-4, conv1 and conv2 frozen",
        ),
        deviations=(
            "the four losses are trained jointly, as in the authors' later code, where "
            "the paper's results are of training in four steps",
            *_PAPER_DEVIATIONS,
        ),
    ),
    ModelSpec(
        name="faster_rcnn_resnet101_c4",
        task="detection",
        build=faster_rcnn_c4,
        config=C4Config,
        paper="He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition, "
        "2015, appendix A",
        num_classes=20,
        preprocess=fast_rcnn.PREPROCESS,
        params=47_462_111,
        macs=314_128_862_208,
        torch_rules=_c4_rules,
        loss=LOSS,
        init=fast_rcnn.INIT,
        published=(
            "VOC 2007 test: 76.4 mAP trained on 07+12, 85.6 with COCO, box refinement, "
            "context and several scales",
            "VOC 2012 test: 73.8 mAP trained on 07++12, 83.8 likewise",
            "COCO val: 27.2 AP (48.4 at IoU 0.5), 8 images a step for proposals and 16 "
            "for regions, 240k steps at 0.001 and 80k at 0.0001",
        ),
        deviations=(
            "the paper does not say how large a region's map is: 14 x 14, so that the "
            "last stage's is 7 x 7 as in classification",
            "the paper does not say how wide the first stage is: 512, as on VGG-16",
            *_PAPER_DEVIATIONS,
        ),
    ),
    ModelSpec(
        name="faster_rcnn_resnet50_fpn",
        task="detection",
        build=faster_rcnn_fpn,
        config=FPNConfig,
        paper=f"{FPN_PAPER}, section 5.2, as torchvision's fasterrcnn_resnet50_fpn",
        num_classes=90,
        preprocess=FPN_PREPROCESS,
        params=41_808_406,
        macs=177_581_734_144,
        torch_rules=fpn_rules,
        weights=(_COCO,),
        loss=LOSS,
        init=f"{RESNET_INIT}, to be replaced by ImageNet's; convolutions of the "
        "pyramid uniform of variance 1 / fan-in, of the proposals normal, std 0.01; "
        "dense layers uniform within 1 / sqrt(fan-in); biases 0",
        published=(
            "37.0 box AP on COCO's validation images of 2017 (torchvision: 26 epochs, "
            "16 images at a time, learning rate 0.02, divided by 10 after epochs 16 "
            "and 22, momentum 0.9, weight decay 1e-4, flips; batch norm, stem and "
            "stage 1 frozen)",
        ),
        deviations=(
            "a bottleneck's 3x3 convolution has the stride, and not its first 1x1 one",
            "the loss of deltas turns from a square into a line at 1/9 in both stages, "
            "where the paper's turns at 1/9 and at 1",
            "dense layers begin with biases 0, where torchvision's are uniform within "
            "1 / sqrt(fan-in)",
            "an object that no anchor touches matches none, where in torchvision it "
            "matches all that do not touch it",
            "batch norm is frozen unless frozen=False is given; torchvision freezes "
            "it where weights are loaded",
        ),
    ),
)
