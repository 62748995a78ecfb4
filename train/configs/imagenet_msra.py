"""The 19-layer PReLU network of the He initialization paper, on ImageNet.

    canon-zoo train imagenet_msra_a

The shorter side is drawn from 256 to 512, a crop of 224 is taken at random and mirrored
half of the time, and colors are shifted. Batch 128, SGD with momentum 0.9 and weight
decay 5e-4, learning rate 0.01, 0.001 and 0.0001 in about 80 epochs; the paper lowers it
when the error stops improving, this recipe after a half and three quarters. The slopes
are not decayed, nor are biases, about which the paper says nothing.

Validation errors that the paper reports, top-1 and top-5, from ten views at scale 256:
25.59 % and 8.23 %. Its larger networks took three to four weeks on eight K40.

Reference:
  He, Zhang, Ren, Sun, Delving Deep into Rectifiers, 2015, section 4.
"""

from train.config import ModelConfig, OptimConfig, TrainConfig
from train.configs.imagenet import imagenet


def config() -> TrainConfig:
    """Network A; `--model.name msra_b` or `msra_c` for the others."""
    return TrainConfig(
        model=ModelConfig("msra_a"),
        data=imagenet("scale_jitter:256:512", "pca_color:0.1", batch_size=128),
        optim=OptimConfig(
            learning_rate=0.01,
            momentum=0.9,
            weight_decay=5e-4,
            decay="kernels",
            schedule="step",
            boundaries=(0.5, 0.75),
        ),
        epochs=80,
        log_every=100,
    )
