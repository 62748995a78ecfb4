"""AlexNet (2012) and ZFNet (2013, the visualization paper) on ImageNet.

    canon-zoo train imagenet_alexnet
    canon-zoo train imagenet_zfnet

Images are random crops of the central square of 256 pixels, mirrored half of the time;
AlexNet adds color noise. Batch 128, SGD with momentum 0.9 and weight decay 5e-4,
learning rate 0.01 divided by 10 three times, for 90 and 70 epochs. The papers lower the
rate when the validation error stops improving, without saying when; here it is every 20
epochs, as in Caffe's AlexNet.

Validation errors that the papers report, top-1 and top-5, from ten crops: 40.7 % and
18.2 % (AlexNet), 38.4 % and 16.5 % (ZFNet). Their authors trained them for five to six
days on two GTX 580, and for twelve days on one.

Differences: ZFNet's paper crops only at the center and the corners, and states no
weight decay; here it is AlexNet's.

References:
  Krizhevsky, Sutskever, Hinton, ImageNet Classification with Deep Convolutional Neural
  Networks, 2012, sections 4.1 and 5. Zeiler, Fergus, Visualizing and Understanding
  Convolutional Networks, 2013, section 3.1.
"""

import dataclasses

from train.config import ModelConfig, OptimConfig, TrainConfig
from train.configs.imagenet import imagenet


def alexnet() -> TrainConfig:
    """The paper's recipe."""
    return TrainConfig(
        model=ModelConfig("alexnet"),
        data=imagenet("square:256", "pca_color:0.1", batch_size=128),
        optim=OptimConfig(
            learning_rate=0.01,
            momentum=0.9,
            weight_decay=5e-4,
            schedule="step",
            boundaries=(20 / 90, 40 / 90, 60 / 90),
        ),
        epochs=90,
        log_every=100,
    )


def zfnet() -> TrainConfig:
    """The paper's recipe; filters are limited to a root mean square of 0.1."""
    base = alexnet()
    return dataclasses.replace(
        base,
        model=ModelConfig("zfnet"),
        data=imagenet("square:256", batch_size=128),
        optim=dataclasses.replace(
            base.optim, boundaries=(20 / 70, 40 / 70, 60 / 70), filter_rms=0.1
        ),
        epochs=70,
    )
