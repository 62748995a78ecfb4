"""YOLO's own networks: the full one, and the small ones called Fast or tiny.

Reference:
  Redmon, Divvala, Girshick, Farhadi, You Only Look Once: Unified, Real-Time Object
  Detection, 2016, section 2.1 and figure 3; the authors' Darknet, cfg/yolo-tiny.cfg of
  2015 and cfg/yolov1-tiny.cfg.
"""

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp

from zoo.checks import check_detector_classes
from zoo.detection.yolo import YOLO
from zoo.detection.yolo_layers import GRID, PREDICTORS, SIZE, DenseHead, YOLOBackbone
from zoo.layers import initializer
from zoo.spec import ModelSpec, Preprocess, TorchRule

PAPER = (
    "Redmon, Divvala, Girshick, Farhadi: You Only Look Once: Unified, Real-Time Object "
    "Detection, 2016"
)

# Stages of convolutions (window, channels[, stride]); a 2 x 2 pool is between them.
FULL = (
    ((7, 64, 2),),
    ((3, 192),),
    ((1, 128), (3, 256), (1, 256), (3, 512)),
    (*((1, 256), (3, 512)) * 4, (1, 512), (3, 1024)),
    (
        *((1, 512), (3, 1024)) * 2,
        *((3, 1024), (3, 1024, 2)),
        *((3, 1024), (3, 1024)),
    ),
)
_NARROW = (((3, 16),), ((3, 32),), ((3, 64),), ((3, 128),), ((3, 256),), ((3, 512),))
TINY = (*_NARROW, ((3, 1024), (3, 1024), (3, 1024)))
TINY_BN = (*_NARROW, ((3, 1024), (3, 256)))


def yolo_v1(
    *,
    variant: str,
    num_classes: int,
    stages: tuple | None = None,
    hidden: tuple[int, ...] | None = None,
    init: str = "he_fan_in",
    dropout: float = 0.5,
    remat: bool = False,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
) -> YOLO:
    """Builds a network of YOLO's first version.

    Args:
      variant: A name of `SPECS`.
      num_classes: Of the objects.
      stages: Stages of convolutions (window, channels[, stride]), with 2 x 2 pools
        between them; None for the variant's.
      hidden: Outputs of the dense layers before the last; None for the variant's.
      init: Of all layers, a name of `zoo.layers.INITIALIZERS`.
      dropout: Rate before the last layer, where there are several dense ones.
      remat: Trade computation for memory in the backward pass.
      dtype: Of the computation.
      param_dtype: Of the parameters.

    Raises:
      ValueError: `num_classes` is less than 1, or `init` is unknown.
    """
    check_detector_classes(variant, num_classes)
    row = _NETWORKS[variant]
    stages = row.stages if stages is None else stages
    stages = tuple(tuple(map(tuple, stage)) for stage in stages)
    hidden = row.hidden if hidden is None else tuple(hidden)
    options = dict(kernel_init=initializer(init), dtype=dtype, param_dtype=param_dtype)
    return YOLO(
        backbone=YOLOBackbone(variant, stages, row.batch_norm, remat=remat, **options),
        head=DenseHead(num_classes, hidden, dropout, **options),
        preprocess=_PREPROCESS,
    )


def _torch_rules(model: YOLO) -> tuple[TorchRule, ...]:
    """Our own names, in the order of Darknet's files."""
    count = sum(len(stage) for stage in model.backbone.stages)
    channels, last = model.backbone.stages[-1][-1][1], len(model.head.hidden) + 1
    kinds = ("conv", "bn") if model.backbone.batch_norm else ("conv",)
    rules = []
    for i in range(1, count + 1):
        rules += [TorchRule(f"backbone/{kind}{i}", f"{kind}{i}") for kind in kinds]
    for i in range(1, last + 1):
        flatten = (channels, GRID, GRID) if i == 1 else None
        outputs = (GRID**2, GRID**2 * 5 * PREDICTORS) if i == last else None
        rules.append(TorchRule(f"head/fc{i}", f"fc{i}", flatten, outputs=outputs))
    return tuple(rules)


_PREPROCESS = Preprocess(
    size=SIZE,
    channels=3,
    mean=(0.0,) * 3,
    std=(1.0,) * 3,
    fit="stretch",
    antialias=False,
)


class _Network(NamedTuple):
    """A row of the table of networks; counts are for 20 classes."""

    stages: tuple
    hidden: tuple[int, ...]
    batch_norm: bool
    params: int
    macs: int
    source: str
    published: tuple[str, ...]
    deviations: tuple[str, ...]


_UNTRAINED = (
    "the authors begin with convolutions that were trained on ImageNet at 224 x 224",
)
_NETWORKS = {
    "yolo_v1": _Network(
        stages=FULL,
        hidden=(4096,),
        batch_norm=False,
        params=271_703_550,
        macs=20_285_153_280,
        source="section 2.1 and figure 3",
        published=(
            "PASCAL VOC 2007 test mAP 63.4 %, trained on 07+12",
            "PASCAL VOC 2012 test mAP 57.9 %",
        ),
        deviations=_UNTRAINED,
    ),
    "yolo_v1_tiny": _Network(
        stages=TINY,
        hidden=(256, 4096),
        batch_norm=False,
        params=45_089_374,
        macs=2_418_728_960,
        source="Fast YOLO of section 2.1, cfg/yolo-tiny.cfg of the authors' Darknet",
        published=("PASCAL VOC 2007 test mAP 52.7 %, trained on 07+12",),
        deviations=(
            "the paper says no more of Fast YOLO than its 9 convolutions: the layers "
            "are those of the authors' file of 2015",
            *_UNTRAINED,
        ),
    ),
    "yolo_v1_tiny_bn": _Network(
        stages=TINY_BN,
        hidden=(),
        batch_norm=True,
        params=27_095_374,
        macs=1_608_015_360,
        source="after it, cfg/yolov1-tiny.cfg of the authors' Darknet",
        published=("none: it is the authors' later network, not the paper's",),
        deviations=(
            "8 convolutions with batch norm and one dense layer, as the authors' later "
            "file has them; the paper has 9 without, and several dense layers",
        ),
    ),
}


def _spec(name: str, row: _Network) -> ModelSpec:
    return ModelSpec(
        name=name,
        task="detection",
        build=partial(yolo_v1, variant=name),
        paper=f"{PAPER}, {row.source}",
        num_classes=20,
        preprocess=_PREPROCESS,
        params=row.params,
        macs=row.macs,
        torch_rules=_torch_rules,
        loss="squared errors of boxes, confidences and classes",
        init="He et al. 2015, normal of variance 2 / fan-in; biases 0",
        published=row.published,
        deviations=(
            *row.deviations,
            "boxes are clipped to the image before suppression, not after it",
            "initialised by He et al. 2015; the paper does not say how",
        ),
    )


SPECS = tuple(_spec(name, row) for name, row in _NETWORKS.items())
