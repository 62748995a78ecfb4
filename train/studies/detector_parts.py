"""The detectors of the study `detectors`, their parts, and their images."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import zoo
from train.configs import get_config
from train.data import eval_batches
from train.data.formats.digits import SIDE, draw_canvas, read_digits
from train.experiment import open_split
from train.optim import make_optimizer, make_schedule
from train.state import create_state
from train.steps import make_prepare, make_train_step
from train.studies.runner import long_config, run_trainer
from train.studies.study import Job
from train.tasks.detection import Detection
from zoo.cpu import compiler_options, jit_inference
from zoo.detect import select_detections
from zoo.detection.rcnn import warp
from zoo.detection.two_stage import Proposals, TwoStage

Batch = Mapping[str, np.ndarray]

SLOTS = 8  # number of slots for the objects of an image
CHUNK = 64  # number of regions that R-CNN reads at once, to limit memory
PARTS = ("backbone", "proposals", "head", "decoding and suppression")
# The last endpoints of each backbone, which the heads read.
BACKBONES = {
    "faster_rcnn_small": ("p2", "p3", "p4"),
    "ssd96_small": ("stage3", "stage4", "stage5"),
    "yolo96_small": ("stage3",),
    "faster_rcnn_vgg16": ("conv5_3",),
    "ssd300_vgg16": ("conv4_3", "fc7"),
    "yolo_v1": ("conv24",),
}


class Recipe(NamedTuple):
    """The training of a detector.

    Attributes:
      model: Registered name of the detector.
      config: Name of the config.
      weights: The weights that the first layers start from.
    """

    model: str
    config: str
    weights: str | None


# The detectors of blood cells, and those of VOC, by the names in the study.
BCCD = {
    "Faster R-CNN": Recipe(
        "faster_rcnn_small", "bccd_faster_rcnn", "faster_rcnn_small:digits_canvas"
    ),
    "SSD": Recipe("ssd96_small", "bccd_ssd", "ssd96_small:digits_canvas"),
    "YOLO": Recipe("yolo96_small", "bccd_yolo", "yolo96_small:digits_canvas"),
}
VOC = {
    "Faster R-CNN": Recipe("faster_rcnn_vgg16", "voc_faster_rcnn", "vgg16:imagenet"),
    "SSD": Recipe("ssd300_vgg16", "voc_ssd300", "vgg16:imagenet"),
    "YOLO": Recipe("yolo_v1", "voc_yolo", None),
}


class Trained(NamedTuple):
    """A trained detector and its test images.

    Attributes:
      model: The detector.
      variables: The detector's variables.
      backbone: Names of the last endpoints of the backbone.
      classes: Number of classes of objects.
      test: Function that returns the test images in batches of one image, fitted to the
        detector, see `train.data.pipeline`.
    """

    model: Any
    variables: dict[str, Any]
    backbone: tuple[str, ...]
    classes: int
    test: Callable[[], Iterable[Batch]]


def load_on_canvases(job: Job) -> dict[str, Trained]:
    """Loads the detectors of digits; trains Faster R-CNN if it is not trained yet."""
    sizes = job.sizes
    found = {
        "faster_rcnn_small": load_faster_rcnn(job.folder, sizes.steps, sizes.batch_size)
    }
    for name in ("ssd96_small", "yolo96_small"):
        found[name] = zoo.create(name, weights="digits_canvas")
    drawn = draw_canvases("test", range(sizes.canvases))
    batches = [
        {name: values[i : i + 1] for name, values in drawn.items()}
        for i in range(sizes.canvases)
    ]
    return {
        label: Trained(
            *found[recipe.model], BACKBONES[recipe.model], 10, lambda: batches
        )
        for label, recipe in BCCD.items()
    }


def train_on_photographs(job: Job) -> dict[str, Trained]:
    """Trains the detectors of `job.sizes.recipes`, unless already trained."""
    found = {}
    for label, (name, recipe, weights) in job.sizes.recipes.items():
        size = job.sizes.batch_size
        config = long_config(
            recipe,
            job,
            model={"weights": weights} if weights else {},
            data={"batch_size": size} if size else {},
        )
        folder, data = job.folder / name, config.data
        run_trainer(config, folder)
        model, variables, card = zoo.create_with_card(name, weights=folder)
        source = open_split(data, data.eval_split, "detection")
        options = dict(batch_size=1, max_boxes=data.max_boxes)
        test = partial(eval_batches, source, card.preprocess, **options)
        classes = len(source.class_names)
        found[label] = Trained(model, variables, BACKBONES[name], classes, test)
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


def make_prefixes(detector: Trained) -> dict[str, Callable]:
    """Makes a detector's jitted prefixes: each ends with a part of `PARTS`.

    Args:
      detector: The detector.

    Returns:
      Functions of images uint8 [1, H, W, 3] and their sizes int32 [1, 2], by part:
      "backbone" returns the last feature maps, "proposals" (if the detector has them)
      `Proposals` and the maps, "head" the outputs of the network, and the last part
      `Detections`.
    """
    model, variables = detector.model, detector.variables

    def read(variables, images, sizes):
        images = zoo.normalize(images, model.preprocess)
        features = model.apply(variables, images, method="endpoints")
        return [features[endpoint] for endpoint in detector.backbone]

    def propose(variables, images, sizes):
        # The feature maps are returned, so that those used only by the head are
        # computed, too.
        outputs, features = model.apply(
            variables,
            zoo.normalize(images, model.preprocess),
            sizes.astype(jnp.float32),
            capture_intermediates=lambda module, _: module.name == "neck",
            mutable=["intermediates"],
        )
        return Proposals(outputs["rois"], outputs["roi_valid"]), features

    def predict(variables, images, sizes):
        images = zoo.normalize(images, model.preprocess)
        return model.apply(variables, images, sizes.astype(jnp.float32))

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
      `detect(images, sizes, proposals) -> Detections`.
    """
    return partial(zoo.make_detector(_without_rpn(model)), variables)


def make_rcnn(
    model: TwoStage, variables: Mapping[str, Any], *, warped: int, context: int
) -> Callable:
    """Makes R-CNN from Faster R-CNN: the network reads each warped region separately.

    Args:
      model: Faster R-CNN.
      variables: The variables of Faster R-CNN.
      warped: Height and width to which a region is warped, in pixels.
      context: Context around the region in the warped image, in pixels.

    Returns:
      `detect(images, sizes, proposals) -> Detections` for one image.
    """
    network = _without_rpn(model)

    @jit_inference
    def detect(variables, images, sizes, proposals):
        image = zoo.normalize(images, model.preprocess)[0]
        boxes, extent = proposals.boxes[0], sizes[0].astype(jnp.float32)
        crops = warp(image, boxes, extent, size=warped, context=context)
        # Without an RPN, the network takes each whole crop as a region.
        parts = [
            network.apply(variables, crops[i : i + CHUNK])
            for i in range(0, len(crops), CHUNK)
        ]
        found = {
            name: jnp.concatenate([part[name][:, 0] for part in parts])[None]
            for name in ("class_logits", "box_deltas")
        }
        outputs = {**found, "rois": proposals.boxes, "roi_valid": proposals.valid}
        return select_detections(model.decode(outputs, extent[None]), model.postprocess)

    return partial(detect, variables)


def _without_rpn(model: TwoStage) -> TwoStage:
    return model.clone(rpn=None, rpn_config=None, rpn_endpoints=())
