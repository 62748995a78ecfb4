"""Small detectors of blood cells in the photographs of BCCD.

    canon-zoo train bccd_ssd --dataset voc:DIR --from ssd96_small:digits_canvas
    canon-zoo train bccd_faster_rcnn --dataset voc:DIR \\
        --from faster_rcnn_small:digits_canvas
    canon-zoo train bccd_yolo --dataset voc:DIR --from yolo96_small:digits_canvas
    canon-zoo train visualize RUN

DIR contains BCCD's JPEGImages, Annotations and ImageSets: 292 training and 72 test
photographs of 640 x 480 pixels, with red cells, white cells and platelets. `--from`
copies the convolutions of the same detector trained on digits, whose weights come with
the package. SSD's AP50 is 60 to 62 %, after less than four minutes on two CPU cores;
the study `detectors` at its medium scale compares the three.
"""

import dataclasses

from train.config import TrainConfig
from train.configs import digits_detection


def ssd() -> TrainConfig:
    """The small SSD."""
    return _on_photographs(digits_detection.ssd())


def faster_rcnn() -> TrainConfig:
    """The small Faster R-CNN."""
    return _on_photographs(digits_detection.faster_rcnn())


def yolo() -> TrainConfig:
    """The small YOLO."""
    return _on_photographs(digits_detection.yolo())


def _on_photographs(base: TrainConfig) -> TrainConfig:
    """Forty epochs on random crops of the photographs, at 96 x 96 pixels."""
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, layers=("backbone/**",)),
        data=dataclasses.replace(
            base.data,
            dataset="voc:BCCD",
            train_split="trainval",
            max_boxes=64,
            fit="stretch",
            geometry=("iou_crop", "flip"),
        ),
        epochs=40,
        eval_every=10,
        save_every=10,
    )
