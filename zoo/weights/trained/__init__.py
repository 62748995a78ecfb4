"""Weights included in the package, trained by the experiments of this repository.

model, variables = zoo.create("ssd96_small", weights="digits_canvas")  # works offline

`MODEL-NAME.safetensors` has the arrays and `MODEL-NAME.json` records their training;
`python tests/benchmarks/train_weights.py` makes both.
"""

import json
from pathlib import Path
from typing import Any

import safetensors

from zoo.spec import Card, Weights

FOLDER = Path(__file__).parent


def list_trained(model: str) -> tuple[Weights, ...]:
    """Lists the weights of a model that the package includes.

    Args:
      model: Name of the model.
    """
    paths = sorted(FOLDER.glob(f"{model}-*.safetensors"))
    return tuple(_describe(path) for path in paths)


def find_trained(model: str, name: str) -> Path | None:
    """Returns the file of weights that the package includes, or None.

    Args:
      model: Name of the model.
      name: Name of the weights, such as "digits_canvas".
    """
    path = FOLDER / f"{model}-{name}.safetensors"
    return path if path in FOLDER.glob(f"{model}-*.safetensors") else None


def read_record(model: str, name: str) -> dict[str, Any]:
    """Reads how weights were trained: data, command, commit, seed and measured results.

    Args:
      model: Name of the model.
      name: Name of the weights.
    """
    return json.loads((FOLDER / f"{model}-{name}.json").read_text(encoding="utf-8"))


def _describe(path: Path) -> Weights:
    model, _, name = path.stem.partition("-")
    record = read_record(model, name)
    with safetensors.safe_open(path, "numpy") as file:
        card = Card.from_json(json.loads(file.metadata()["zoo"]))
    return Weights(
        name=name,
        url="",
        sha256=record["sha256"],
        accuracy=card.accuracy,
        source=card.source,
        licence=card.licence,
        preprocess=card.preprocess,
        class_names=card.class_names,
        file=path.name,
    )
