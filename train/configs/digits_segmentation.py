"""A small U-Net on handwritten digits that lie on textured canvases.

    python -m train digits_segmentation_unet

2,000 canvases of 96 x 96 pixels to train on and 400 to evaluate, made from the digits
that scikit-learn carries; a mask says for each pixel which digit it belongs to, or that
it is background, which is learned at once; which digit it is comes late. After 2,000
of the 4,000 steps, three minutes on two CPU cores, the mean IoU is 35 %.
"""

from train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig


def unet() -> TrainConfig:
    """U-Net with 16 to 128 channels."""
    return TrainConfig(
        model=ModelConfig("unet_small"),
        data=DataConfig(
            "digits_canvas",
            batch_size=8,
            eval_batch_size=40,
            # Without these the network learns the canvases by heart.
            geometry=("translate:0.12",),
            augment=("ssd_photometric",),
        ),
        optim=OptimConfig(
            name="adamw",
            learning_rate=3e-3,
            weight_decay=1e-4,
            schedule="cosine",
            warmup_steps=50,
        ),
        epochs=16,
        eval_every=4,
        save_every=8,
    )
