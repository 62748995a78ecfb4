"""DeepFace: a small one on people who do not exist, on ORL, and the paper's.

python -m train faces_deepface_small
python -m train orl_deepface --dataset orl:DIR
python -m train faces_deepface --dataset imagefolder:DIR
"""

from train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig


def small() -> TrainConfig:
    """A small DeepFace on faces that are drawn."""
    return TrainConfig(
        model=ModelConfig("deepface_small"),
        data=DataConfig(
            "faces_synthetic",
            batch_size=32,
            eval_batch_size=160,
            augment=("affine:4:0.03:0.04",),
        ),
        optim=OptimConfig(
            name="adamw",
            learning_rate=1.5e-3,
            weight_decay=1e-2,
            schedule="cosine",
            warmup_steps=50,
        ),
        steps=1000,
        eval_every=10,
        save_every=20,
    )


def orl() -> TrainConfig:
    """The small network on 30 of ORL's 40 people."""
    return TrainConfig(
        model=ModelConfig("deepface_small"),
        data=DataConfig(
            "orl:orl-faces",
            color="rgb",
            batch_size=30,
            eval_batch_size=100,
            augment=("flip", "affine:8:0.06:0.1"),
        ),
        optim=OptimConfig(
            name="adamw",
            learning_rate=2e-3,
            weight_decay=1e-2,
            schedule="cosine",
            warmup_steps=50,
        ),
        epochs=160,
        eval_every=40,
        save_every=80,
    )


def deepface() -> TrainConfig:
    """The paper's recipe, for a large set of people.

    SGD with momentum 0.9 and batches of 128; the rate falls from 0.01 to 0.0001 in two
    steps over 15 epochs.
    """
    return TrainConfig(
        model=ModelConfig("deepface"),
        data=DataConfig("imagefolder:faces", batch_size=128, eval_batch_size=128),
        optim=OptimConfig(
            learning_rate=0.01,
            momentum=0.9,
            weight_decay=0.0,
            schedule="step",
            boundaries=(0.5, 0.8),
        ),
        epochs=15,
    )
