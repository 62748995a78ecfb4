"""Recipes for your own data, which are completed after inspecting it.

    canon-zoo train my_images --dataset imagefolder:DIR
    canon-zoo train my_boxes --dataset coco:DIR      (or voc:DIR)
    canon-zoo train my_masks --dataset masks:DIR     (or voc_masks:DIR)

Each prints what it found in the data, what is odd about it, and what it chose, with the
option that changes each choice; an option that is given replaces the choice. The
recipes below have only the settings that do not depend on the data; `train.choose`
chooses the rest.
"""

from train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig


def images() -> TrainConfig:
    """Images with one class each."""
    return TrainConfig(
        model=ModelConfig("cifar_resnet20"),
        data=DataConfig("", augment=("flip",)),
        optim=OptimConfig(
            learning_rate=0.1, nesterov=True, weight_decay=5e-4, schedule="cosine"
        ),
    )


def boxes() -> TrainConfig:
    """Images with boxes around objects."""
    return TrainConfig(
        model=ModelConfig("faster_rcnn_small"),
        data=DataConfig("", geometry=("flip", "translate:0.1")),
        optim=OptimConfig(
            name="adamw", learning_rate=1e-3, weight_decay=1e-4, schedule="cosine"
        ),
    )


def masks() -> TrainConfig:
    """Images with a class for each pixel."""
    return TrainConfig(
        model=ModelConfig("unet_small"),
        data=DataConfig("", geometry=("flip", "translate:0.1")),
        optim=OptimConfig(
            name="adamw", learning_rate=2e-3, weight_decay=1e-4, schedule="cosine"
        ),
    )


# The recipes by name, which `train.choose` completes.
RECIPES = {"my_images": images, "my_boxes": boxes, "my_masks": masks}
