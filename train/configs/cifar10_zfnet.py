"""A small ZFNet on CIFAR-10, enlarged to 64 pixels, to see what it learns.

    canon-zoo train cifar10_zfnet64
    canon-zoo train visualize RUN

Three epochs of 50,000 images, 64 at a time; `train resume RUN` goes on after a break.
65.9 % of the test images are right, after nine minutes on two CPU cores.

Reference:
  Zeiler, Fergus, Visualizing and Understanding Convolutional Networks, 2014.
"""

from train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig


def config() -> TrainConfig:
    """Three epochs, with a checkpoint of each."""
    return TrainConfig(
        model=ModelConfig("zfnet64_small"),
        data=DataConfig("cifar10", batch_size=64, augment=("pad_crop:4", "flip")),
        optim=OptimConfig(
            name="adamw",
            learning_rate=1e-3,
            weight_decay=1e-3,
            schedule="cosine",
            warmup_steps=100,
        ),
        epochs=3,
        # They show how features come about.
        save_every=1,
        keep=3,
        log_every=20,
    )
