"""A trained network, the images it is shown, and what it says of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn
from PIL import Image

import zoo
from train.config import TrainConfig, load_config
from train.data import decode_image
from zoo.predict import wrap_network
from zoo.spec import Card

COLORS = {1: "grey", 3: "rgb"}  # by the number of a network's channels


class Prediction(NamedTuple):
    """What a network says of an image, or of a pair.

    Attributes:
      title: The names of the files.
      stem: The beginning of the pictures' file names.
      words: The prediction in short.
      pictures: The pictures to be saved, by the endings of their file names.
    """

    title: str
    stem: str
    words: str
    pictures: dict[str, Image.Image]


class TrainedRun(NamedTuple):
    """The network of a run.

    Attributes:
      run_dir: The folder of the run.
      model: The network.
      variables: The network's variables.
      card: The facts of the variables.
      config: The config of the run; None where the folder has none.
    """

    run_dir: Path
    model: nn.Module
    variables: Any
    card: Card
    config: TrainConfig | None


def load_run(run_dir: Path) -> TrainedRun:
    """Loads the network of a run.

    Args:
      run_dir: The folder of the run.

    Raises:
      ValueError: The folder has no run.
    """
    name = zoo.weights.read_card(run_dir).model
    model, variables, card = zoo.create_with_card(name, weights=str(run_dir))
    file = run_dir / "config.json"
    config = load_config(file) if file.exists() else None
    return TrainedRun(run_dir, model, variables, card, config)


def read_image(path: Path, run: TrainedRun) -> np.ndarray:
    """Reads an image file as the network was trained on such files.

    Args:
      path: The file.
      run: The trained network.

    Returns:
      uint8 [h, w, C].

    Raises:
      BadImage: The file is no image that can be read.
    """
    # Upright, as viewers show it, unless the run took images as they are stored.
    upright = run.config is None or run.config.data.orientation != "stored"
    color = COLORS[run.card.preprocess.channels]
    return decode_image(path.read_bytes(), str(path), color=color, upright=upright)


def predict_each(
    run: TrainedRun, paths: Sequence[Path], *, score_threshold: float | None
) -> Iterator[Prediction]:
    """Yields what a network says of each image on its own.

    Args:
      run: The trained network.
      paths: The image files.
      score_threshold: Of detectors: the lowest score of a detection, 0 to 1; None for
        the network's own.
    """
    predict = wrap_network(
        run.model, run.variables, run.card, score_threshold=score_threshold
    )
    for path in paths:
        found = predict(read_image(path, run))
        yield Prediction(str(path), path.stem, found.words(), found.pictures())
