"""Weights: read, fetched and converted both ways.

loaded = zoo.weights.load("cifar_resnet20", "resnet20.th")
model = zoo.build("cifar_resnet20", num_classes=loaded.card.num_classes)
logits = model.apply(loaded.variables, images)
"""

from zoo.weights.checkpoints import read_card, read_checkpoint
from zoo.weights.darknet import read_darknet, save_darknet
from zoo.weights.download import cache_path, fetch
from zoo.weights.files import load_safetensors, read_state_dict, save_safetensors
from zoo.weights.loading import Loaded, convert, load
from zoo.weights.torch_format import from_torch, to_torch
from zoo.weights.trained import list_trained

__all__ = [
    "Loaded",
    "cache_path",
    "convert",
    "fetch",
    "from_torch",
    "list_trained",
    "load",
    "load_safetensors",
    "read_card",
    "read_checkpoint",
    "read_darknet",
    "read_state_dict",
    "save_darknet",
    "save_safetensors",
    "to_torch",
]
