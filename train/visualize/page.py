"""The page of visualizations: its contents and their order.

Reference:
  Zeiler, Fergus, Visualizing and Understanding Convolutional Networks, 2014, figures 2,
  4 and 6.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import zoo
from train.checkpoint import list_steps
from train.data import Source
from train.data.source import evenly_spaced
from train.report import write_page
from train.visualize.classifier import classifier_sections
from train.visualize.layers import filters_section, history_section, layer_section
from train.visualize.parts import Network
from train.visualize.scores import scores_section
from zoo.paths import unknown

# Images that are searched to show how channels develop in training.
HISTORY_IMAGES = 256


def write_visualization(
    network: Network,
    source: Source,
    path: Path,
    *,
    title: str,
    layers: Sequence[str] = (),
    channels: int = 16,
    limit: int = 1000,
    history: Mapping[int, Mapping[str, Any]] | None = None,
    quiet: bool = False,
) -> Path:
    """Writes one self-contained page of visualizations of a network.

    Args:
      network: The network.
      source: The images, fitted to the network by `train.data.fit_source`.
      path: The path of the page.
      title: The heading of the page.
      layers: The names of endpoints; empty for four feature maps.
      channels: The number of channels to show of each layer.
      limit: The largest number of images to search for the strongest activations; they
        are evenly spaced in the source.
      history: The variables by training step, in order, to show how features develop;
        None to omit this section.
      quiet: Whether to hide the progress bar.

    Returns:
      `path`.

    Raises:
      ValueError: A layer is unknown or not a feature map, a number is out of range, or
        the source has no images.
    """
    if channels < 1 or limit < 1:
        raise ValueError(
            f"channels and limit must be 1 or more, got {channels} and {limit}."
        )
    if not len(source):
        raise ValueError(f"{source.name}, split {source.split}, has no images.")
    layers = _choose_layers(network, layers)
    places = evenly_spaced(len(source), limit)
    total = len(layers) + 4
    with tqdm(total=total, unit=" parts", disable=quiet) as bar:
        bar.set_description("reading images")
        images = np.stack([source.image(i) for i in places])
        bar.update()
        sections = [filters_section(network)]
        for layer in layers:
            bar.set_description(f"{layer}: strongest patches")
            sections.append(layer_section(network, images, layer, channels))
            bar.update()
        if history:
            bar.set_description("features through training")
            few = images[:: -(-len(images) // HISTORY_IMAGES)]
            sections += [
                history_section(network, few, layer, history) for layer in layers
            ]
        bar.set_description("explaining predictions")
        task = zoo.get_spec(network.card.model).task
        if task == "classification":
            labels = np.asarray(source.labels)[places]
            sections += classifier_sections(network, images, labels, layers)
        elif task == "segmentation" or hasattr(network.model, "decode"):
            sections.append(scores_section(network, images, layers))
        bar.update(2)
        bar.set_description("writing")
        facts = {
            "model": network.card.model,
            "images": f"{len(images):,} of {len(source):,}",
            "data set": f"{source.name}, split {source.split}",
            "layers": ", ".join(layers),
        }
        numbers = {name: (value, "") for name, value in facts.items()}
        path = write_page(path, title, network.card.source, numbers, sections)
        bar.update()
    return path


def read_steps(run_dir: Path) -> dict[int, Mapping[str, Any]]:
    """Reads the variables of a run's checkpoints.

    Args:
      run_dir: The folder of the run.

    Returns:
      The variables by step, in order, of at most five checkpoints, evenly spaced from
      the first to the last.
    """
    steps = list_steps(run_dir)
    shown = [steps[i] for i in evenly_spaced(len(steps), 5)]
    return {step: zoo.weights.read_checkpoint(run_dir, step)[0] for step in shown}


def _choose_layers(network: Network, layers: Sequence[str]) -> list[str]:
    endpoints = network.endpoints()
    for layer in layers:
        if layer not in endpoints:
            raise ValueError(f"--layers: {unknown('endpoint', layer, endpoints)}")
    if layers:
        return [*layers]
    classes = {network.card.num_classes, network.card.num_classes + 1}
    maps = [
        name
        for name, shape in endpoints.items()
        if len(shape) == 3 and min(shape[:2]) >= 3 and shape[2] not in classes
        if not name.endswith("mask")
    ]
    # Pooling and normalization show the features of the layer before them.
    kept = [n for n in maps if "pool" not in n and "norm" not in n] or maps
    if not kept:
        raise ValueError(f"--layers: name some of {[*endpoints]}.")
    return [kept[i] for i in evenly_spaced(len(kept), 4)]
