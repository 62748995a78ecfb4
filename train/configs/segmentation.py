"""The papers' recipes for segmentation, on PASCAL VOC, CamVid and Cityscapes.

    canon-zoo train voc_fcn32s --dataset voc_masks:VOCdevkit --from vgg16:imagenet
    canon-zoo train voc_fcn16s --dataset voc_masks:VOCdevkit --from runs/voc_fcn32s-TIME
    canon-zoo train camvid_segnet --dataset masks:camvid
    canon-zoo train cityscapes_pspnet --data-dir DIR --from resnet101:imagenet

camvid is a folder with SPLIT/images and SPLIT/masks, with values 0 to 10 for SegNet's
11 classes and 11 for unlabeled pixels; TFDS prepares cityscapes in DIR from its
publisher's archives.

- voc_fcn32s, voc_fcn16s, voc_fcn8s: batch 20, rate 1e-4, divided by 100 for each new
  skip, 175 epochs; each network starts from the one before. Published, trained on SBD
  and evaluated on the 736 images of VOC 2011 val that are not in SBD: 59.4, 62.4 and
  62.7 % mean IoU.
- camvid_segnet: batch 4, rate 0.001, 40,000 steps, median frequency balancing: 60.1 %
  mean IoU, 71.2 % class accuracy, 90.4 % of the pixels, from 3,500 training images
  instead of CamVid's 367.
- camvid_unet, camvid_fcn8s, camvid_pspnet, camvid_frrn: the networks' own recipes on
  the same images; there are no comparable published results.
- cityscapes_frrn: FRRN B as in its released script: Adam with a rate of 0.001, and of
  0.0001 after 45,000 steps, batch 3, half of the resolution, shifts by up to 20 pixels
  at that resolution. The paper's FRRN B has 71.8 % mean IoU on the test set.
- cityscapes_pspnet: ResNet-101, crops of 713 x 713, batch 16, 90,000 steps, polynomial
  rate from 0.01, and ten times that for layers outside the ResNet: 79.7 % mean IoU on
  the validation set, at one scale.

Differences: voc_fcn* train on VOC 2012's 1,464 images unless SBD's are added to the
folder. SegNet's batch norm uses running statistics, which its tutorial recomputes after
training, and starts with a shift of 0, not 0.001. FRRN's script runs until it is
stopped, and samples images with weights from a file; here training ends after 70,000
steps, images are sampled uniformly, and the script's gamma augmentation is a change of
brightness. The released PSPNet for PyTorch has batch norm over the whole batch, as
here, and a blur augmentation, which is left out.

References:
  Long, Shelhamer, Darrell, 2015, section 4. Badrinarayanan, Kendall, Cipolla, SegNet,
  2015, section 4, and its tutorial. Ronneberger, Fischer, Brox, U-Net, 2015. Pohlen et
  al., Full-Resolution Residual Networks, 2017, section 4, and the released code. Zhao
  et al., Pyramid Scene Parsing Network, 2017, section 5.
"""

import dataclasses

from train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig

CAMVID = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car"),
    *("pedestrian", "bicyclist"),
)
TALL, WIDE = 360, 480  # CamVid's images


def fcn(stride: int) -> TrainConfig:
    """FCN on VOC.

    Args:
      stride: 32, 16 or 8; 16 starts from a network with 32, and 8 from one with 16.
    """
    before = "head/score_fr/**", "head/score_pool4/**", "head/upscore2/**"
    heads = {32: (), 16: before[:1], 8: before}[stride]
    return TrainConfig(
        model=ModelConfig(f"fcn{stride}s_vgg16", layers=("backbone/**", *heads)),
        data=DataConfig(
            "voc_masks:VOCdevkit",
            train_split="VOC2012/train",
            eval_split="VOC2012/val",
            color="rgb",
            batch_size=20,
            eval_batch_size=4,
            workers=8,
        ),
        optim=OptimConfig(
            learning_rate={32: 1e-4, 16: 1e-6, 8: 1e-8}[stride],
            momentum=0.9,
            weight_decay=5e-4,
            decay="kernels",
            rates=("**/bias=2",),
        ),
        epochs=175,
        eval_every=5,
        save_every=5,
    )


def camvid(**options) -> DataConfig:
    """SegNet's split of CamVid: 367 training images and 233 test images."""
    return DataConfig(
        "masks:camvid",
        classes=CAMVID,
        ignored=(11,),
        color="rgb",
        **{"batch_size": 4, "eval_batch_size": 4, "size": (TALL, WIDE), **options},
    )


def segnet() -> TrainConfig:
    """SegNet as in its tutorial, without mirroring."""
    return TrainConfig(
        model=ModelConfig("segnet"),
        data=camvid(),
        optim=OptimConfig(
            learning_rate=1e-3,
            momentum=0.9,
            weight_decay=5e-4,
            # Decays kernels and batch norm's scales, but not biases and shifts.
            decay="kernels",
            decay_also=("**/scale",),
            rates=("**/conv*/bias=2",),
        ),
        steps=40_000,
        eval_every=10,
        save_every=10,
    )


def _on_camvid(name: str, optim: OptimConfig, **options) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(name),
        data=camvid(
            geometry=("flip", "scale_jitter:0.75:1.5", "random_crop"), **options
        ),
        optim=optim,
        steps=20_000,
        eval_every=10,
        save_every=10,
    )


def camvid_unet() -> TrainConfig:
    """U-Net on images padded to 368 rows, since 360 is no multiple of its stride 16."""
    adam = OptimConfig(name="adamw", learning_rate=1e-3, schedule="polynomial")
    return _on_camvid("unet_same", adam, size=(368, WIDE))


def camvid_fcn8s() -> TrainConfig:
    """FCN-8s, with all skips learned at once."""
    optim = OptimConfig(
        learning_rate=1e-3,
        momentum=0.9,
        weight_decay=5e-4,
        decay="kernels",
        rates=("**/bias=2",),
        schedule="polynomial",
    )
    config = _on_camvid("fcn8s_vgg16", optim)
    model = ModelConfig("fcn8s_vgg16", layers=("backbone/**",))
    return dataclasses.replace(config, model=model)


def camvid_pspnet() -> TrainConfig:
    """PSPNet with ResNet-50; its input sides are multiples of 8, plus 1."""
    return dataclasses.replace(
        _on_camvid("pspnet_resnet50", _pspnet_optim(), size=(361, 481)),
        model=ModelConfig("pspnet_resnet50", options=("aux=True",)),
    )


def camvid_frrn() -> TrainConfig:
    """FRRN A, from scratch."""
    config = _on_camvid("frrn_a", _frrn_optim(), size=(368, WIDE))
    data = dataclasses.replace(config.data, augment=("color_jitter:0.05:0:0",))
    return dataclasses.replace(config, data=data)


def cityscapes_frrn() -> TrainConfig:
    """FRRN B at half of the resolution."""
    return TrainConfig(
        model=ModelConfig("frrn_b"),
        data=DataConfig(
            "cityscapes",
            eval_split="validation",
            batch_size=3,
            eval_batch_size=3,
            fit="stretch",
            size=(512, 1024),
            augment=("color_jitter:0.05:0:0",),
            geometry=(f"translate:{20 / 512}:{20 / 1024}",),
            workers=8,
        ),
        optim=_frrn_optim(),
        steps=70_000,
        eval_every=5,
        log_every=100,
    )


def cityscapes_pspnet() -> TrainConfig:
    """PSPNet with ResNet-101; evaluation sees whole images."""
    return TrainConfig(
        model=ModelConfig(
            "pspnet_resnet101", layers=("backbone/**",), options=("aux=True",)
        ),
        data=DataConfig(
            "cityscapes",
            eval_split="validation",
            batch_size=16,
            eval_batch_size=1,
            size=(713, 713),
            eval_size=(1025, 2049),
            geometry=("flip", "scale_jitter:0.5:2", "rotate:10", "random_crop"),
            workers=16,
        ),
        optim=dataclasses.replace(_pspnet_optim(), rates=("{head,aux_head}/**=10",)),
        steps=90_000,
        eval_every=20,
        log_every=100,
    )


def _pspnet_optim() -> OptimConfig:
    return OptimConfig(
        learning_rate=0.01,
        momentum=0.9,
        weight_decay=1e-4,
        schedule="polynomial",
        power=0.9,
    )


def _frrn_optim() -> OptimConfig:
    return OptimConfig(
        name="adamw",
        learning_rate=1e-3,
        weight_decay=0.0,
        schedule="step",
        boundaries=(45 / 70,),
        factor=0.1,
    )
