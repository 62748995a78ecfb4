"""Residual networks on ImageNet: as published, and as torchvision trains them.

    canon-zoo train imagenet_resnet50_v1
    canon-zoo train imagenet_resnet50

The paper's recipe: the shorter side is drawn from 256 to 480, a crop of 224 is taken at
random and mirrored half of the time, and colors are shifted; 600,000 steps (120 epochs)
of batch 256, SGD with momentum 0.9 and weight decay 1e-4, learning rate 0.1 divided by
10 when the error stops improving: here every 30 epochs, where the paper's curves drop.
torchvision's recipe: crops of 8 to 100 % of the area, aspect ratios of 3:4 to 4:3,
mirrored half of the time; 90 epochs, with the rate divided by 10 every 30.

Validation errors, top-1 and top-5: 22.85 % and 6.71 % from ten crops (the paper's
ResNet-50; 21.75 % and 6.05 % of 101, 21.43 % and 5.71 % of 152 layers); plain 34 layers
28.54 %, ResNet-34 25.03 %. From one crop 23.87 % and 7.14 % (torchvision's ResNet-50;
30.24 % of 18, 26.69 % of 34, 22.63 % of 101, 21.69 % of 152 layers).

An A100 trains 2,470 images per second in half precision (NVIDIA's published figure for
PyTorch), and thus torchvision's recipe in 13 hours; `--model.dtype bfloat16` selects
half precision.

References:
  He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, 2015, section 3.4.
  references/classification of torchvision.
"""

from train.config import ModelConfig, OptimConfig, TrainConfig
from train.configs.imagenet import imagenet


def paper(name: str) -> TrainConfig:
    """The recipe of 2015, for any network of the paper."""
    return TrainConfig(
        model=ModelConfig(name),
        data=imagenet("scale_jitter:256:480", "pca_color:0.1", batch_size=256),
        optim=_optim(boundaries=(0.25, 0.5, 0.75)),
        epochs=120,
        log_every=100,
    )


def torchvision(name: str) -> TrainConfig:
    """The recipe of torchvision's first weights."""
    return TrainConfig(
        model=ModelConfig(name),
        data=imagenet("area:0.08:1", batch_size=256),
        optim=_optim(boundaries=(1 / 3, 2 / 3)),
        epochs=90,
        log_every=100,
    )


def _optim(boundaries: tuple[float, ...]) -> OptimConfig:
    return OptimConfig(
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=1e-4,
        schedule="step",
        boundaries=boundaries,
    )
