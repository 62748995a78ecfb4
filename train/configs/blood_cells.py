"""A small SSD that finds blood cells in the photographs of BCCD.

    canon-zoo train bccd_ssd --dataset voc:DIR --from ssd96_small:digits_canvas
    canon-zoo train visualize RUN

DIR has BCCD's JPEGImages, Annotations and ImageSets: 292 photographs of 640 x 480
pixels to train on and 72 to test, with red and white cells and platelets. `--from`
takes the convolutions of the small SSD that knows digits, which the package carries.
AP50 is 60 to 62 %, after less than four minutes on two CPU cores.
"""

import dataclasses

from train.config import TrainConfig
from train.configs import digits_detection


def ssd() -> TrainConfig:
    """Forty epochs of parts of the photographs."""
    base = digits_detection.ssd()
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, layers=("backbone/**",)),
        data=dataclasses.replace(
            base.data,
            dataset="voc:BCCD",
            train_split="trainval",
            max_boxes=64,
            geometry=("iou_crop", "flip"),
        ),
        epochs=40,
        eval_every=10,
        save_every=10,
    )
