"""LeNet-5 on scikit-learn's 1,797 handwritten digits.

    canon-zoo train digits_lenet5

The network, its initialization and its loss are those of 1998; SGD with momentum
replaces the paper's second-order method. It takes about a minute on two CPU cores; at
least 98 % of the 364 held-out images are classified correctly.
"""

from train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig


def config() -> TrainConfig:
    """LeNet-5 as published, trained with mild distortions as in the paper."""
    return TrainConfig(
        model=ModelConfig("lenet5"),
        data=DataConfig("digits", batch_size=32, augment=("affine",)),
        optim=OptimConfig(
            learning_rate=5e-4, momentum=0.9, weight_decay=0.0, schedule="cosine"
        ),
        epochs=60,
        eval_every=5,
        save_every=5,
    )


def modern() -> TrainConfig:
    """The variant with max pooling, ReLU and softmax; Caffe's momentum and decay."""
    return TrainConfig(
        model=ModelConfig("lenet5_modern"),
        data=DataConfig("digits", batch_size=32, augment=("affine",)),
        optim=OptimConfig(
            learning_rate=0.01, momentum=0.9, weight_decay=5e-4, schedule="cosine"
        ),
        epochs=20,
        eval_every=5,
        save_every=5,
    )
