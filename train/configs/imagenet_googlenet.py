"""GoogLeNet on ImageNet: the paper's recipe as far as it is known, and Caffe's.

    canon-zoo train imagenet_googlenet
    canon-zoo train imagenet_googlenet_quick

The paper states the crops (8 to 100 % of the area, aspect ratios of 3:4 to 4:3), the
photometric distortions, momentum 0.9, the learning rate's decay (4 % every 8 epochs),
the averaging of weights over time and the two auxiliary losses of weight 0.3. The rest
is taken from Caffe's `bvlc_googlenet`: batch 32, a rate of 0.01, for biases twice the
rate and no decay, weight decay 2e-4, 250 epochs. The decay of the average, 0.9999, is
this project's. Caffe's "quick" solver is the second experiment: the rate falls with the
square root of the remaining share of 2,400,000 steps, on crops of a central square.

Scale the rate with the batch size: `--batch-size 256 --learning-rate 0.08`.

Validation errors, top-1 and top-5: 10.07 % top-5 from one crop (the paper, one of its
seven networks); 31.3 % and 11.1 % from the center (Caffe's quick solver). The paper
estimates a week on a few GPUs of its time.

Differences: resizing is always bilinear, where the paper chose among four methods at
random; Caffe warps its images to 256 x 256.

Reference:
  Szegedy et al., Going Deeper with Convolutions, 2014, section 6.
"""

import dataclasses

from train.config import ModelConfig, OptimConfig, TrainConfig
from train.configs.imagenet import imagenet

EPOCHS = 250


def googlenet() -> TrainConfig:
    """The paper's recipe."""
    return TrainConfig(
        model=ModelConfig("googlenet", options=("aux=True",)),
        data=imagenet("area:0.08:1", "photometric", "pca_color:0.1", batch_size=32),
        optim=OptimConfig(
            learning_rate=0.01,
            momentum=0.9,
            weight_decay=2e-4,
            decay="kernels",
            rates=("**/bias=2",),
            schedule="step",
            boundaries=tuple(epoch / EPOCHS for epoch in range(8, EPOCHS, 8)),
            factor=0.96,
            ema_decay=0.9999,
        ),
        epochs=EPOCHS,
        log_every=100,
    )


def quick() -> TrainConfig:
    """Caffe's quick solver."""
    base = googlenet()
    return dataclasses.replace(
        base,
        data=imagenet("square:256", batch_size=32),
        optim=dataclasses.replace(
            base.optim, schedule="polynomial", power=0.5, ema_decay=None
        ),
        steps=2_400_000,
    )
