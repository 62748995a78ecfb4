"""The detectors of the study `detectors`, their parts, and their images."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import zoo
from train.configs import get_config
from train.data import load_dataset, load_resident
from train.data.formats.digits import SIDE, draw_canvas, read_digits
from train.optim import make_optimizer, make_schedule
from train.state import create_state
from train.steps import make_prepare, make_train_step
from train.studies.runner import run_trainer
from train.studies.study import Job
from train.tasks.detection import Detection
from zoo.cpu import compiler_options, jit_inference
from zoo.detect import select_detections
from zoo.detection.rcnn import warp
from zoo.detection.two_stage import Proposals, TwoStage

SLOTS = 8  # number of slots for the objects of an image
# Height and width to which R-CNN warps a region, half of the image's as in the paper
# (227 of about 500 pixels), and the context around the region, in pixels.
WARPED, CONTEXT = 48, 3
# The configs that train on photographs.
PHOTOGRAPHS = {
    "faster_rcnn_small": "bccd_faster_rcnn",
    "ssd96_small": "bccd_ssd",
    "yolo96_small": "bccd_yolo",
}
# The last endpoints of each backbone, which the heads read.
BACKBONES = {
    "faster_rcnn_small": ("p2", "p3", "p4"),
    "ssd96_small": ("stage3", "stage4", "stage5"),
    "yolo96_small": ("stage3",),
}
PARTS = ("backbone", "proposals", "head", "decoding and suppression")


class Trained(NamedTuple):
    """A trained detector and its test images.

    Attributes:
      model: The detector.
      variables: The detector's variables.
      test: All test images as one batch of the trainer, fitted to the detector.
    """

    model: Any
    variables: dict[str, Any]
    test: Mapping[str, np.ndarray]


def load_on_canvases(job: Job) -> dict[str, Trained]:
    """Loads the detectors of digits; trains Faster R-CNN if it is not trained yet."""
    sizes = job.sizes
    faster = load_faster_rcnn(job.folder, sizes.steps, sizes.batch_size)
    found = {
        "faster_rcnn_small": faster,
        "ssd96_small": zoo.create("ssd96_small", weights="digits_canvas"),
        "yolo96_small": zoo.create("yolo96_small", weights="digits_canvas"),
    }
    test = draw_canvases("test", range(sizes.canvases))
    return {name: Trained(*detector, test) for name, detector in found.items()}


def train_on_photographs(job: Job) -> dict[str, Trained]:
    """Trains the detectors on photographs of blood cells, unless already trained.

    They start from the convolutions of the same detectors trained on digits.
    """
    sizes, found = job.sizes, {}
    for name, kind in PHOTOGRAPHS.items():
        config = get_config(kind)
        model = dataclasses.replace(config.model, weights=f"{name}:digits_canvas")
        data = dataclasses.replace(
            config.data,
            dataset=job.dataset or config.data.dataset,
            batch_size=sizes.batch_size,
        )
        config = dataclasses.replace(config, model=model, data=data, steps=sizes.steps)
        run_trainer(config, job.folder / name)
        model, variables, card = zoo.create_with_card(name, weights=job.folder / name)
        source = load_dataset(data.dataset, data.eval_split)
        test = load_resident(source, card.preprocess, max_boxes=data.max_boxes)
        found[name] = Trained(model, variables, test)
    return found


def draw_canvases(split: str, numbers: range) -> dict[str, np.ndarray]:
    """Draws canvases of digits as one batch of the trainer.

    Args:
      split: "train" or "test".
      numbers: Numbers of the canvases, which determine their content.
    """
    images, labels, test = read_digits()
    chosen = test if split == "test" else ~test
    images, labels, count = images[chosen], labels[chosen], len(numbers)
    batch = {
        "image": np.zeros((count, SIDE, SIDE, 3), np.uint8),
        "boxes": np.zeros((count, SLOTS, 4), np.float32),
        "classes": np.zeros((count, SLOTS), np.int32),
        "box_valid": np.zeros((count, SLOTS), bool),
        "difficult": np.zeros((count, SLOTS), bool),
        "size": np.full((count, 2), SIDE, np.int32),
        "index": np.asarray(numbers, np.int32),
    }
    for i, number in enumerate(numbers):
        canvas, boxes, classes, _ = draw_canvas(split, number, images, labels)
        batch["image"][i] = canvas
        batch["boxes"][i, : len(boxes)] = boxes
        batch["classes"][i, : len(boxes)] = classes
        batch["box_valid"][i, : len(boxes)] = True
    return batch


def load_faster_rcnn(
    folder: Path, steps: int, batch_size: int
) -> tuple[TwoStage, dict[str, Any]]:
    """Trains the small Faster R-CNN on canvases, or reads it if already trained.

    Every canvas is shown once. The optimizer is that of `digits_detection_faster_rcnn`.

    Args:
      folder: Folder of the study.
      steps: Length, in steps; 0 for the package's weights.
      batch_size: Images in a step.
    """
    path = folder / f"faster_rcnn_small-{steps}x{batch_size}.safetensors"
    if path.exists():
        return zoo.create("faster_rcnn_small", weights=path)
    if not steps:
        return zoo.create("faster_rcnn_small", weights="digits_canvas")
    model, variables, card = zoo.create_with_card("faster_rcnn_small")
    optim = get_config("digits_detection_faster_rcnn").optim
    optim = dataclasses.replace(optim, warmup_steps=min(50, steps // 5))
    schedule = make_schedule(optim, steps)
    tx = make_optimizer(optim, schedule, variables["params"])
    step = make_train_step(
        model,
        Detection(),
        tx,
        schedule=schedule,
        prepare=make_prepare(model.preprocess, None),
        seed=0,
    )
    options = compiler_options(training=True)
    step = jax.jit(step, donate_argnums=0, compiler_options=options)
    state = create_state(jax.tree.map(jnp.copy, variables), tx)
    for first in range(0, steps * batch_size, batch_size):
        batch = draw_canvases("train", range(first, first + batch_size))
        state, _ = step(state, batch)
    zoo.weights.save_safetensors(path, state.variables(), card)
    return model, state.variables()


def make_prefixes(
    name: str, model: Any, variables: Mapping[str, Any]
) -> dict[str, Callable]:
    """Makes a detector's jitted prefixes: each ends with a part of `PARTS`.

    Args:
      name: Registered name of the detector.
      model: The detector.
      variables: The detector's variables.

    Returns:
      Functions of images uint8 [1, H, W, 3], by part: "backbone" returns the last
      feature maps, "proposals" (if the detector has them) `Proposals` and the maps,
      "head" the outputs of the network, and the last part `Detections`.
    """

    def read(variables, images):
        images = zoo.normalize(images, model.preprocess)
        features = model.apply(variables, images, method="endpoints")
        return [features[endpoint] for endpoint in BACKBONES[name]]

    def propose(variables, images):
        # The feature maps are returned, so that those used only by the head are
        # computed, too.
        outputs, features = model.apply(
            variables,
            zoo.normalize(images, model.preprocess),
            capture_intermediates=lambda module, _: module.name == "neck",
            mutable=["intermediates"],
        )
        return Proposals(outputs["rois"], outputs["roi_valid"]), features

    def predict(variables, images):
        return model.apply(variables, zoo.normalize(images, model.preprocess))

    prefixes = {"backbone": jit_inference(read)}
    if isinstance(model, TwoStage):
        prefixes["proposals"] = jit_inference(propose)
    prefixes |= {"head": jit_inference(predict), PARTS[-1]: zoo.make_detector(model)}
    return {part: partial(call, variables) for part, call in prefixes.items()}


def make_fast_rcnn(model: TwoStage, variables: Mapping[str, Any]) -> Callable:
    """Makes Fast R-CNN from the second stage of Faster R-CNN, given proposals.

    Args:
      model: Faster R-CNN.
      variables: The variables of Faster R-CNN.

    Returns:
      `detect(images, proposals) -> Detections`.
    """
    detect = zoo.make_detector(_without_rpn(model))
    return lambda images, proposals: detect(variables, images, None, proposals)


def make_rcnn(model: TwoStage, variables: Mapping[str, Any]) -> Callable:
    """Makes R-CNN from Faster R-CNN: the network reads each warped region separately.

    Args:
      model: Faster R-CNN.
      variables: The variables of Faster R-CNN.

    Returns:
      `detect(images, proposals) -> Detections` for one image.
    """
    network = _without_rpn(model)

    @jit_inference
    def detect(variables, images, proposals):
        image = zoo.normalize(images, model.preprocess)[0]
        extent = jnp.array(image.shape[:2], jnp.float32)
        boxes = proposals.boxes[0]
        crops = warp(image, boxes, extent, size=WARPED, context=CONTEXT)
        # Without an RPN, the network takes each whole crop as a region.
        found = network.apply(variables, crops)
        outputs = {
            "class_logits": found["class_logits"][None, :, 0],
            "box_deltas": found["box_deltas"][None, :, 0],
            "rois": proposals.boxes,
            "roi_valid": proposals.valid,
        }
        return select_detections(model.decode(outputs, extent[None]), model.postprocess)

    return partial(detect, variables)


def _without_rpn(model: TwoStage) -> TwoStage:
    return model.clone(rpn=None, rpn_config=None, rpn_endpoints=())
