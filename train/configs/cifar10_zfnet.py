"""A small ZFNet on CIFAR-10 images enlarged to 64 pixels, to visualize its features.

    canon-zoo train cifar10_zfnet64
    canon-zoo train visualize RUN

Three epochs of 50,000 images in batches of 64; `train resume RUN` resumes an
interrupted run. The test accuracy is 65.9 %, after nine minutes on two CPU cores.

Reference:
  Zeiler, Fergus, Visualizing and Understanding Convolutional Networks, 2014.
"""

from train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig


def config() -> TrainConfig:
    """Three epochs, with a checkpoint after each."""
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
        # The checkpoints show how features develop.
        save_every=1,
        keep=3,
        log_every=20,
    )
