"""Residual and plain networks on CIFAR-10, with the paper's recipe.

    canon-zoo train cifar10_resnet20

Batch 128, SGD with momentum 0.9 and weight decay 1e-4, learning rate 0.1 divided by 10
after a half and three quarters of the 64,000 steps; images are padded by 4 pixels,
cropped and flipped.

Test errors that the paper reports: 8.75 % (20 layers), 7.51 % (32), 7.17 % (44),
6.97 % (56), 6.43 % (110, best of five; 6.61 % on average), 7.93 % (1202); plain
networks are worse the deeper they are. A step of ResNet-20 takes about 0.5 s on two
CPU cores, so the whole schedule needs an accelerator; `cifar10_resnet20_20epochs` takes
an hour on these cores.

Reference:
  He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, 2015, section 4.2.
"""

from train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig


def config(depth: int, kind: str = "resnet") -> TrainConfig:
    """The paper's recipe.

    Args:
      depth: Number of weighted layers; 110 or more warm up at 0.01 for 400 steps.
      kind: "resnet" or "plain".
    """
    return TrainConfig(
        model=ModelConfig(f"cifar_{kind}{depth}"),
        data=DataConfig("cifar10", batch_size=128, augment=("pad_crop:4", "flip")),
        optim=OptimConfig(
            learning_rate=0.1,
            momentum=0.9,
            weight_decay=1e-4,
            schedule="step",
            boundaries=(0.5, 0.75),
            # 0.01 until the training error falls below 80 %: about 400 steps.
            warmup_steps=400 if depth >= 110 else 0,
            warmup_rate=0.01,
        ),
        steps=64_000,
        eval_every=5,
        save_every=5,
        log_every=100,
    )


def twenty_epochs() -> TrainConfig:
    """20 epochs of ResNet-20, cosine schedule: about an hour on two CPU cores."""
    paper = config(20)
    return TrainConfig(
        model=paper.model,
        data=paper.data,
        optim=OptimConfig(
            learning_rate=0.2,
            momentum=0.9,
            nesterov=True,
            weight_decay=5e-4,
            schedule="cosine",
            warmup_steps=780,
        ),
        epochs=20,
        log_every=50,
    )


def short(depth: int = 20) -> TrainConfig:
    """One epoch with a cosine schedule: about five minutes on two CPU cores."""
    paper = config(depth)
    return TrainConfig(
        model=paper.model,
        data=paper.data,
        optim=OptimConfig(learning_rate=0.1, schedule="cosine", warmup_steps=50),
        epochs=1,
        log_every=10,
    )
