"""Small detectors of handwritten digits that lie on textured canvases.

    python -m train digits_detection_ssd
    python -m train digits_detection_faster_rcnn
    python -m train digits_detection_yolo

2,000 canvases of 96 x 96 pixels with one to six digits each to train on and 400 to
evaluate, made from the digits that scikit-learn carries.
"""

import dataclasses

from train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig


def ssd() -> TrainConfig:
    """A small SSD."""
    return TrainConfig(
        model=ModelConfig("ssd96_small"),
        data=DataConfig(
            "digits_canvas", batch_size=16, eval_batch_size=40, max_boxes=8
        ),
        optim=OptimConfig(
            name="adamw",
            learning_rate=2e-3,
            weight_decay=1e-4,
            schedule="cosine",
            warmup_steps=50,
        ),
        epochs=16,
        eval_every=4,
        save_every=8,
    )


def faster_rcnn() -> TrainConfig:
    """A small Faster R-CNN."""
    return dataclasses.replace(ssd(), model=ModelConfig("faster_rcnn_small"))


def yolo() -> TrainConfig:
    """A small YOLO."""
    return dataclasses.replace(ssd(), model=ModelConfig("yolo96_small"))
