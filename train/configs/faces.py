"""DeepFace: a small one on drawn people and on ORL, and the paper's recipe.

    canon-zoo train faces_deepface_small

draws 2,176 pictures of 176 people once, and trains on twelve pictures of each of 128
people, aligned in three dimensions. It never sees the other 48 people: 1,200 pairs of
their pictures are verified in ten folds, and each of their last pictures is identified
against a gallery of the first four. After the 1,000 steps 97.8 % +- 0.9 of the pairs
are right (area under the ROC 99.8 %), the rank-1 identification rate is 97.9 %, and
94.9 % of the held-out pictures of people of the training set are classified correctly.
If only a similarity aligns the faces, the same network gets 90.7 % +- 0.9 of the pairs
right, and without alignment 61.0 % +- 1.2: faces turn by up to 40 degrees, tilt by up
to 20, and are up to 7 of 80 pixels off the center. (The paper's network on LFW: 95.9,
94.3 and 87.9 %.) A descriptor is the mean over a face and its mirror image. With
`--seed 1` the three are 97.2 % +- 0.6, 92.8 % +- 0.8 and 62.7 % +- 2.3: at least 97 %
with alignment in 3D, 4 to 8 points less with a similarity. `--align none` trains on
faces that are not aligned. Training takes 3 minutes and 20 seconds on two CPU cores,
including the drawing.

    canon-zoo train evaluate RUN --protocol siamese

and `chi_squared` fit the paper's comparisons to nine folds of pairs: with the run's
best checkpoint they get 96.9 % +- 1.0 and 97.0 % +- 0.9 right, and inner products
98.0 % +- 0.7.

    canon-zoo train landmarks DIR
    canon-zoo train orl_deepface --dataset orl:DIR

finds the landmarks of all 400 of ORL's faces, and fine-tunes the network of the drawn
faces on five pictures of each of 30 of the 40 people. The other five pictures of all 40
people are identified against a gallery of the first five (98.5 % at rank 1), those of
the 30 people are classified (98.7 %), and 900 pairs of the other ten people are
verified (87.7 % +- 0.8). Without landmarks these are 91.0 %, 96.0 % and 85.7 % +- 1.2;
with them, but from a new network, 94.0 %, 94.0 % and 87.4 % +- 0.7; `--epochs 60
--learning-rate 1e-3` verifies better, 88.4 % +- 0.7 with 97.0 % at rank 1. Training
takes two minutes on two CPU cores.

    canon-zoo train faces_deepface --dataset imagefolder:DIR

is the paper's recipe for a large set, with a folder for each person and the file of
landmarks (`canon-zoo train landmarks DIR` writes it). On several hosts, run the same
command on each, with `--distributed` after `train` and a `--run-dir` that all of them
see.

None of these numbers says anything about other people's faces: accuracy differs between
groups, and has to be measured for each group before any use.
"""

from train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig


def small() -> TrainConfig:
    """A small DeepFace on drawn faces."""
    return TrainConfig(
        model=ModelConfig("deepface_small"),
        data=DataConfig(
            "faces_synthetic",
            batch_size=32,
            eval_batch_size=160,
            augment=("affine:4:0.03:0.04",),
            mirror=True,
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
        model=ModelConfig("deepface_small", weights="faces_synthetic"),
        data=DataConfig(
            "orl:orl-faces",
            color="rgb",
            batch_size=30,
            eval_batch_size=100,
            augment=("flip", "affine:8:0.06:0.1"),
            mirror=True,
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
