"""The experiments by name; each file states the command, the cost and the result."""

import dataclasses
from collections.abc import Callable
from functools import partial

from train.config import TrainConfig
from train.configs import (
    blood_cells,
    cifar10_resnet,
    cifar10_zfnet,
    detection,
    digits_detection,
    digits_lenet5,
    digits_segmentation,
    faces,
    imagenet_alexnet,
    imagenet_googlenet,
    imagenet_msra,
    imagenet_resnet,
    imagenet_vgg,
    my_data,
    segmentation,
)
from train.tasks import TASKS
from zoo.paths import unknown
from zoo.registry import get_spec

CONFIGS: dict[str, Callable[[], TrainConfig]] = {
    **my_data.RECIPES,
    "digits_lenet5": digits_lenet5.config,
    "digits_lenet5_modern": digits_lenet5.modern,
    "digits_detection_ssd": digits_detection.ssd,
    "digits_detection_faster_rcnn": digits_detection.faster_rcnn,
    "digits_detection_yolo": digits_detection.yolo,
    "bccd_ssd": blood_cells.ssd,
    "bccd_faster_rcnn": blood_cells.faster_rcnn,
    "bccd_yolo": blood_cells.yolo,
    "digits_segmentation_unet": digits_segmentation.unet,
    "faces_deepface_small": faces.small,
    "orl_deepface": faces.orl,
    "faces_deepface": faces.deepface,
    "cifar10_resnet20_short": cifar10_resnet.short,
    "cifar10_resnet20_20epochs": cifar10_resnet.twenty_epochs,
    "cifar10_zfnet64": cifar10_zfnet.config,
    **{
        f"cifar10_resnet{depth}": partial(cifar10_resnet.config, depth)
        for depth in (20, 32, 44, 56, 110, 1202)
    },
    **{
        f"cifar10_plain{depth}": partial(cifar10_resnet.config, depth, "plain")
        for depth in (20, 32, 44, 56, 110)
    },
    "imagenet_alexnet": imagenet_alexnet.alexnet,
    "imagenet_zfnet": imagenet_alexnet.zfnet,
    "imagenet_vgg11": imagenet_vgg.vgg11,
    "imagenet_vgg16": imagenet_vgg.vgg16,
    "imagenet_googlenet": imagenet_googlenet.googlenet,
    "imagenet_googlenet_quick": imagenet_googlenet.quick,
    "imagenet_msra_a": imagenet_msra.config,
    **{
        f"imagenet_resnet{depth}": partial(
            imagenet_resnet.torchvision, f"resnet{depth}"
        )
        for depth in (18, 34, 50, 101, 152)
    },
    **{
        f"imagenet_{name}": partial(imagenet_resnet.paper, name)
        for name in ("resnet50_v1", "resnet101_v1", "resnet152_v1", "plain34")
    },
    "voc_ssd300": partial(detection.ssd, "ssd300_vgg16"),
    "voc_ssd512": partial(detection.ssd, "ssd512_vgg16"),
    "coco_ssd300": partial(detection.ssd, "ssd300_vgg16", on="coco"),
    "voc_faster_rcnn": detection.faster_rcnn,
    "coco_faster_rcnn_fpn": detection.faster_rcnn_fpn,
    "voc_yolo": detection.yolo,
    **{f"voc_fcn{n}s": partial(segmentation.fcn, n) for n in (32, 16, 8)},
    "camvid_segnet": segmentation.segnet,
    "camvid_unet": segmentation.camvid_unet,
    "camvid_fcn8s": segmentation.camvid_fcn8s,
    "camvid_pspnet": segmentation.camvid_pspnet,
    "camvid_frrn": segmentation.camvid_frrn,
    "cityscapes_frrn": segmentation.cityscapes_frrn,
    "cityscapes_pspnet": segmentation.cityscapes_pspnet,
}


def get_config(name: str) -> TrainConfig:
    """Returns an experiment; NAME_tiny is a few steps of it on the embedded digits.

    Raises:
      ValueError: There is no such experiment; the message has the nearest names.
    """
    base = name.removesuffix("_tiny")
    if base not in CONFIGS:
        raise ValueError(unknown("config", name, CONFIGS))
    config = CONFIGS[base]()
    return tiny(config) if name != base else config


def tiny(config: TrainConfig) -> TrainConfig:
    """Shrinks an experiment to three small steps on digits, to test its plumbing."""
    spec = get_spec(config.model.name)
    preprocess = spec.preprocess
    data = dataclasses.replace(
        config.data,
        color=preprocess.color,
        workers=0,
        **TASKS[spec.task].tiny_data(preprocess),
    )
    model = dataclasses.replace(config.model, layers=())
    optim = dataclasses.replace(config.optim, warmup_steps=0)
    return dataclasses.replace(
        config, model=model, data=data, optim=optim, steps=3, log_every=1
    )
