"""The papers' recipes for SSD, Faster R-CNN and YOLO, on PASCAL VOC and COCO.

    canon-zoo train voc_ssd300 --dataset voc:VOCdevkit --from vgg16:imagenet
    canon-zoo train coco_faster_rcnn_fpn --dataset coco:DIR --from resnet50:imagenet

VOCdevkit is the folder that VOC's archives unpack to, with VOC2007 and VOC2012; DIR
contains annotations/instances_train2017.json and the images in train2017 and val2017.
`--from` names the classifier whose weights initialize the first layers: a run or
MODEL:WEIGHTS.

- voc_ssd300, voc_ssd512: zoom-out and crops by IoU, batch 32, 120,000 steps, rate 0.001
  divided by 10 at 80,000 and 100,000. Published (trained on 07+12, "SSD*"): 77.2 % and
  79.8 % mAP on VOC 2007 test.
- coco_ssd300: the same for 400,000 steps, with the rate divided by 10 at 280,000 and
  360,000: 25.1 % AP on test-dev.
- voc_faster_rcnn: VGG-16, batch 2, 70,000 steps, rate 0.001 divided by 10 at 50,000:
  73.2 % mAP on VOC 2007 test, trained on 07+12.
- coco_faster_rcnn_fpn: torchvision's recipe. ResNet-50, batch 16, 26 epochs, rate 0.02
  divided by 10 after 16 and 22: 37.0 % AP on val2017.
- voc_yolo: batch 64, 40,000 steps, rate up to 0.01, divided by 10 at 20,000 and 30,000:
  63.4 % mAP on VOC 2007 test, trained on 07+12. Darknet's gradient is that of half the
  squared errors, ours is twice as large; for the same steps, the rates here are half of
  Darknet's, and the weight decay is twice its 5e-4.

Differences: images are placed on a canvas of one size that fits all of them, and
resizing is always bilinear, where SSD chose among filters at random. Faster R-CNN is
trained jointly instead of alternately, as in its released code, but with the 2 images
of a step in one batch instead of one after the other; as in that code, biases have
twice the rate and are decayed. SSD's decoding limits a box to 1000/16 times the length
of its default box, as in torchvision, where Caffe has no limit. YOLO changes exposure
and saturation in RGB, not in HSV, and its rate rises linearly over 600 steps, where the
released configuration has 2.5, 5 and 10 times the first rate from steps 200, 400 and
600 on.

References:
  Liu et al., SSD: Single Shot MultiBox Detector, 2016, sections 3.1, 3.4 and 3.6, and
  the released code. Ren et al., Faster R-CNN, 2015, section 3, and py-faster-rcnn.
  Redmon et al., You Only Look Once, 2016, section 2.2, and the released configuration.
  references/detection of torchvision.
"""

from train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig

VGG = ("backbone/{conv1_1,conv1_2,conv2_1,conv2_2,conv3_1,conv3_2,conv3_3}/**",)
VGG += ("backbone/{conv4_1,conv4_2,conv4_3,conv5_1,conv5_2,conv5_3}/**",)
# Layers that torchvision keeps from the classifier; batch norm is frozen everywhere.
FROZEN = ("backbone/{stem,stage1}/**", "backbone/**/{bn1,bn2,bn3,shortcut_bn}/**")


def voc(**options) -> DataConfig:
    """The trainval splits of VOC 2007 and 2012, and the test split of VOC 2007."""
    return DataConfig(
        "voc:VOCdevkit",
        train_split="VOC2007/trainval+VOC2012/trainval",
        eval_split="VOC2007/test",
        color="rgb",
        workers=8,
        **{"eval_batch_size": 8, **options},
    )


def coco(**options) -> DataConfig:
    """COCO of 2017."""
    return DataConfig(
        "coco:coco",
        train_split="train",
        eval_split="val",
        color="rgb",
        workers=16,
        **{"eval_batch_size": 8, **options},
    )


def ssd(name: str, *, on: str = "voc") -> TrainConfig:
    """The recipe of SSD with zoom-out ("SSD*").

    Args:
      name: "ssd300_vgg16" or "ssd512_vgg16".
      on: "voc" or "coco".
    """
    few = on == "voc"
    return TrainConfig(
        model=ModelConfig(
            name, layers=(*VGG, "backbone/{fc6,fc7}/**"), options=(f"boxes={on}",)
        ),
        data=(voc if few else coco)(
            batch_size=32,
            eval_batch_size=32,
            augment=("ssd_photometric",),
            geometry=("zoom_out:4", "iou_crop", "flip"),
            difficult=True,
        ),
        optim=OptimConfig(
            learning_rate=1e-3,
            momentum=0.9,
            weight_decay=5e-4,
            decay="kernels",
            decay_also=("backbone/conv4_3_norm/**",),
            rates=("**/bias=2",),
            schedule="step",
            boundaries=(80 / 120, 100 / 120) if few else (280 / 400, 360 / 400),
        ),
        steps=120_000 if few else 400_000,
        eval_every=10,
        save_every=2,
        log_every=100,
    )


def faster_rcnn() -> TrainConfig:
    """Faster R-CNN with VGG-16, trained jointly."""
    return TrainConfig(
        model=ModelConfig("faster_rcnn_vgg16", layers=(*VGG, "box_head/**")),
        data=voc(batch_size=2, geometry=("flip",), size=(1000, 1000)),
        optim=OptimConfig(
            learning_rate=1e-3,
            momentum=0.9,
            weight_decay=5e-4,
            # Biases are decayed, too, as in the released configuration.
            rates=("**/bias=2",),
            schedule="step",
            boundaries=(5 / 7,),
            freeze=("backbone/{conv1_1,conv1_2,conv2_1,conv2_2}/**",),
        ),
        steps=70_000,
        log_every=100,
    )


def faster_rcnn_fpn() -> TrainConfig:
    """Torchvision's recipe for ResNet-50 with a feature pyramid."""
    return TrainConfig(
        model=ModelConfig("faster_rcnn_resnet50_fpn", layers=("backbone/**",)),
        data=coco(batch_size=16, geometry=("flip",), size=(1344, 1344)),
        optim=OptimConfig(
            learning_rate=0.02,
            momentum=0.9,
            weight_decay=1e-4,
            schedule="step",
            boundaries=(16 / 26, 22 / 26),
            warmup_steps=1000,
            warmup_rate=2e-5,
            freeze=FROZEN,
        ),
        epochs=26,
        log_every=100,
    )


def yolo() -> TrainConfig:
    """YOLO of 2016; a classifier, if given, initializes its first 20 layers."""
    return TrainConfig(
        model=ModelConfig("yolo_v1"),
        data=voc(
            batch_size=64,
            eval_batch_size=64,
            augment=("color_jitter:0.5:0:0.5",),
            geometry=("jitter:0.2", "flip"),
        ),
        optim=OptimConfig(
            # Darknet's are 0.01, 5e-4 and 0.001, for a gradient that is half of ours.
            learning_rate=5e-3,
            momentum=0.9,
            weight_decay=1e-3,
            decay="kernels",
            schedule="step",
            boundaries=(20 / 40, 30 / 40),
            warmup_steps=600,
            warmup_rate=5e-4,
        ),
        steps=40_000,
        eval_every=10,
        save_every=5,
        log_every=100,
    )
