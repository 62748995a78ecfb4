"""A small U-Net on handwritten digits on textured canvases.

    canon-zoo train digits_segmentation_unet

There are 4,000 training and 400 test canvases of 96 x 96 pixels, made from
scikit-learn's digits. A mask gives each pixel's digit or the background, which is seven
of eight pixels and is learned at once. The classes of the digits are learned late, so
the third level's scores have an auxiliary loss on the digits' pixels only. After the
1,700 steps the mean IoU is 85.4 % (98.6 % of the pixels are right). They take five and
a half minutes on two CPU cores, and drawing the canvases, once, half a minute.
"""

from train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig


def unet() -> TrainConfig:
    """A small U-Net with an auxiliary loss on the digits' pixels at the third level."""
    return TrainConfig(
        model=ModelConfig("unet_small", options=("aux=True",)),
        data=DataConfig(
            "digits_canvas",
            batch_size=8,
            eval_batch_size=40,
            geometry=("translate:0.12",),
        ),
        optim=OptimConfig(
            name="adamw",
            learning_rate=3e-3,
            weight_decay=1e-4,
            schedule="cosine",
            warmup_steps=50,
            aux_loss="background:0",
        ),
        steps=1700,
        eval_every=2,
        save_every=2,
    )
