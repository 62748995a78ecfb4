"""The networks that made computer vision, as pure Flax modules.

model, variables = zoo.create("cifar_resnet20", num_classes=10)
logits = jax.jit(model.apply)(variables, images)
"""

import importlib
from typing import TYPE_CHECKING

from zoo import cpu, explain, protocols, transfer, weights
from zoo.api import create, create_with_card
from zoo.classify import Classification, make_classifier
from zoo.compilation_cache import use_compilation_cache
from zoo.descriptors import make_describer
from zoo.detect import make_detector
from zoo.detection.types import Detections
from zoo.export import export
from zoo.features import features
from zoo.predict import Predictor, make_predictor, predict
from zoo.predictions import (
    BoxPrediction,
    ClassPrediction,
    FacePrediction,
    MaskPrediction,
    Prediction,
)
from zoo.preprocess import (
    normalize,
    pad_images,
    resize_and_pad,
    resize_center_crop,
    resize_center_crop_batch,
    resize_shortest_edge,
)
from zoo.regions import make_region_detector, make_region_reader
from zoo.registry import build, get_spec, list_models, list_options
from zoo.segment import Segmentation, make_segmenter
from zoo.summary import Level, describe, list_endpoints, list_layers, list_pyramid

__version__ = "0.2.0"

__all__ = [
    "BoxPrediction",
    "ClassPrediction",
    "Classification",
    "Detections",
    "FacePrediction",
    "Level",
    "MaskPrediction",
    "Prediction",
    "Predictor",
    "Segmentation",
    "build",
    "cpu",
    "create",
    "create_with_card",
    "describe",
    "explain",
    "export",
    "features",
    "get_spec",
    "list_endpoints",
    "list_layers",
    "list_models",
    "list_options",
    "list_pyramid",
    "make_classifier",
    "make_describer",
    "make_detector",
    "make_predictor",
    "make_region_detector",
    "make_region_reader",
    "make_segmenter",
    "normalize",
    "pad_images",
    "predict",
    "protocols",
    "resize_and_pad",
    "resize_center_crop",
    "resize_center_crop_batch",
    "resize_shortest_edge",
    "transfer",
    "use_compilation_cache",
    "weights",
]


if TYPE_CHECKING:
    from zoo import verify as verify
else:

    def __getattr__(name: str):
        # Imported lazily, as only verification needs the golden files.
        if name == "verify":
            return importlib.import_module("zoo.verify")
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
