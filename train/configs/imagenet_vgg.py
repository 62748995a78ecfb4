"""Networks A and D of the VGG paper on ImageNet, where D starts from A.

    canon-zoo train imagenet_vgg11
    canon-zoo train imagenet_vgg16 --from runs/imagenet_vgg11-TIME

The deep network starts from the first four convolutions and the dense layers of the
shallow one, since it does not learn from small normal weights. The paper's later remark
avoids this by another initialization: `--model.layers --model.options init=glorot`.

The shorter side is 256, a crop of 224 is taken at random and mirrored half of the time,
and colors are shifted. Batch 256, SGD with momentum 0.9 and weight decay 5e-4, learning
rate 0.01 divided by 10 three times in 74 epochs (370,000 steps); the paper does not say
when, here after each quarter. Training with a shorter side of 384 starts from a run
with 256, at a rate of 0.001; one with a side drawn from 256 to 512 starts from that:

    canon-zoo train imagenet_vgg16 --model.layers --crop scale_jitter:384:384 --from RUN
    canon-zoo train imagenet_vgg16 --model.layers --crop scale_jitter:256:512 --from RUN

Validation errors that the paper reports, top-1 and top-5, evaluated densely at one
scale: 29.6 % and 10.4 % (A), 27.0 % and 8.8 % (D); 25.6 % and 8.1 % (D, scales 256 to
512). A network took its authors two to three weeks on four Titan Black.

Reference:
  Simonyan, Zisserman, Very Deep Convolutional Networks for Large-Scale Image
  Recognition, 2014, section 3.1.
"""

import dataclasses

from train.config import ModelConfig, OptimConfig, TrainConfig
from train.configs.imagenet import imagenet

FROM_VGG11 = (
    "backbone/{conv1_1,conv2_1,conv3_1,conv3_2}/**",
    "backbone/{fc6,fc7}/**",
    "head/**",
)


def vgg11() -> TrainConfig:
    """Network A, from random initialization."""
    return TrainConfig(
        model=ModelConfig("vgg11"),
        data=imagenet("scale_jitter:256:256", "pca_color:0.1", batch_size=256),
        optim=OptimConfig(
            learning_rate=0.01,
            momentum=0.9,
            weight_decay=5e-4,
            schedule="step",
            boundaries=(0.25, 0.5, 0.75),
        ),
        epochs=74,
        log_every=100,
    )


def vgg16() -> TrainConfig:
    """Network D, from a run of network A."""
    return dataclasses.replace(vgg11(), model=ModelConfig("vgg16", layers=FROM_VGG11))
