"""The report of a segmentation network: classes, confusion, images and errors."""

from collections.abc import Sequence

import jax
import numpy as np

from train.report.parts import (
    Evaluation,
    Picture,
    Section,
    class_table,
    confused_pairs,
    confusion_matrix,
    macros,
    percent,
)
from train.run import Result
from train.steps import make_prepare
from train.task import Evaluated
from zoo.figures.masks import draw_comparison, make_palette
from zoo.preprocess import center_crop

IMAGES = 6  # number of the worst images, and of others
WIDTH = 1200  # pixels of a picture with image, truth, prediction and errors


def evaluate_segmentation(result: Result) -> Evaluation:
    """Makes the report of a run, with the images that have the most errors."""
    experiment, found = result.experiment, result.evaluated
    variables = result.state.eval_variables()
    source, preprocess = experiment.eval_source, experiment.card.preprocess
    prepare, names = make_prepare(preprocess, None), experiment.card.class_names

    @jax.jit
    def predict(variables, batch):
        logits = experiment.model.apply(variables, prepare(None, batch))
        return logits.argmax(-1).astype(np.uint8)

    def draw(i: int) -> Picture:
        example = source[i]
        batch = {k: example[k][None] for k in ("image", "size")}
        predicted = np.asarray(predict(variables, batch)[0])
        # A network without padding predicts only the center.
        image, mask = (
            center_crop(values, *predicted.shape)
            for values in (example["image"], example["mask"][..., None])
        )
        right, where = float(found.right[i]), source.provenance(i)
        return draw_prediction(image, mask[..., 0], predicted, right, names, where)

    worst = np.argsort(np.nan_to_num(found.right, nan=2.0), kind="stable")[:IMAGES]
    others = np.unique(np.linspace(0, len(source) - 1, IMAGES).astype(int))
    return report_segmentation(
        found,
        names,
        [draw(int(i)) for i in worst],
        [draw(int(i)) for i in others if i not in worst],
    )


def report_segmentation(
    found: Evaluated,
    class_names: Sequence[str],
    worst: Sequence[Picture] = (),
    others: Sequence[Picture] = (),
) -> Evaluation:
    """Makes the report of a segmentation network.

    Args:
      found: The result of the evaluation.
      class_names: K names.
      worst: The images with the most errors.
      others: Other images.

    Returns:
      The numbers and sections of the report.
    """
    metrics, confusion = found.metrics, found.confusion
    totals = confusion.sum(axis=1)
    classes = class_table(
        ("class", "intersection over union", "", "pixels"),
        class_names,
        found.classes["iou"],
        counts=[f"{total:,}" for total in totals],
        absent="does not occur",
    )
    shares = np.rint(100 * confusion / np.maximum(totals, 1)[:, None]).astype(int)
    matrix = confusion_matrix(confusion, class_names, shares)
    note = macros.paragraph("Percent of the true class's pixels.")
    legend = macros.palette(class_names, make_palette(class_names).tolist())
    return Evaluation(
        {
            "mean IoU": (percent(metrics["mean_iou"]), "mean over the classes"),
            "pixels right": (percent(metrics["pixel_accuracy"]), "of all"),
            "class accuracy": (percent(metrics["class_accuracy"]), "mean over classes"),
            "loss": (f"{metrics['loss']:.4g}", "evaluation"),
            "images": (f"{metrics['images']:,}", f"{metrics['pixels']:,} pixels"),
        },
        [
            Section("Classes", classes),
            Section("Confusion between classes", matrix + note),
            Section("Most confused", confused_pairs(confusion, class_names)),
            Section("Worst images", legend + macros.gallery(worst, "wide")),
            Section("Other images", legend + macros.gallery(others, "wide")),
        ],
    )


def draw_prediction(
    image: np.ndarray,
    mask: np.ndarray,
    predicted: np.ndarray,
    right: float,
    names: Sequence[str],
    where: str,
) -> Picture:
    """Draws an image, its mask, the prediction and the errors.

    Args:
      image: uint8 [H, W, C].
      mask: uint8 [H, W], 255 where it is ignored.
      predicted: uint8 [H, W].
      right: The share of pixels that are right.
      names: K class names.
      where: Where the image comes from.
    """
    drawn = draw_comparison(image, mask, predicted, make_palette(names))
    alt = "image, truth, prediction and errors"
    return Picture(drawn, alt, f"{percent(right)} right", where, WIDTH)
