"""torchvision's networks, with the outputs at the endpoints of ours."""

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import numpy as np

from zoo.registry import get_spec

_ALEXNET = {
    "conv1": "features.1",
    "pool1": "features.2",
    "conv2": "features.4",
    "pool2": "features.5",
    "conv3": "features.7",
    "conv4": "features.9",
    "conv5": "features.11",
    "pool5": "features.12",
    "fc6": "classifier.2",
    "fc7": "classifier.5",
    "logits": "classifier.6",
}
_RESNET = {
    "stem": "relu",
    "stem_pool": "maxpool",
    **{f"stage{i}": f"layer{i}" for i in range(1, 5)},
    "pool": "avgpool",
    "logits": "fc",
}
_FCN = {
    **{k: f"backbone.{v}" for k, v in _RESNET.items() if k not in ("pool", "logits")},
    "head_conv": "classifier.2",
    "score": "classifier.4",
}
# Our names of the entries of networks' results, besides the outputs of modules.
_RESULTS = {"aux": "aux", "logits": "out"}
_GOOGLENET = {
    "conv1": "conv1",
    "pool1": "maxpool1",
    "conv2_reduce": "conv2",
    "conv2": "conv3",
    "pool2": "maxpool2",
    **{f"inception_{name}": f"inception{name}" for name in ("3a", "3b")},
    "pool3": "maxpool3",
    **{f"inception_{name}": f"inception{name}" for name in "4a 4b 4c 4d 4e".split()},
    "pool4": "maxpool4",
    **{f"inception_{name}": f"inception{name}" for name in ("5a", "5b")},
    "pool": "avgpool",
    "logits": "fc",
}
_HOOKS = {
    "alexnet": _ALEXNET,
    "resnet": _RESNET,
    "googlenet": _GOOGLENET,
    "fcn": _FCN,
}
# Options of the builders of torchvision's modules, besides the number of classes.
_OPTIONS: dict[str, dict[str, Any]] = {
    "vgg": {"init_weights": False},
    "googlenet": {"init_weights": False, "transform_input": False},
    "fcn": {"weights": None, "weights_backbone": None},
}
# Their option for auxiliary heads.
_AUX = {"googlenet": "aux_logits", "fcn": "aux_loss"}


def build_torchvision(
    name: str, *, num_classes: int | None = None, aux: bool = False
) -> Any:
    """Builds torchvision's network, without dropout and with weights to be filled.

    Args:
      name: Name of our model, whose spec names torchvision's.
      num_classes: Number of classes; None for torchvision's.
      aux: Whether to build the auxiliary heads, for networks that have some.

    Raises:
      ImportError: torchvision is not installed, or does not work with this torch.
    """
    builder = attrgetter(get_spec(name).torchvision)(_import_models())
    family = _family(builder)
    options = dict(_OPTIONS.get(family, {}))
    if num_classes is not None:
        options["num_classes"] = num_classes
    if family in _AUX:
        options[_AUX[family]] = aux
    network = builder(**options)
    for module in network.modules():
        if type(module).__name__ == "Dropout":
            module.p = 0.0
    return network


def torchvision_version() -> str:
    """Returns the versions of torchvision and torch, as text.

    Raises:
      ImportError: As for `build_torchvision`.
    """
    _import_models()
    import torch
    import torchvision

    return f"torchvision {torchvision.__version__}, torch {torch.__version__}"


def list_hooks(network: Any, *, aux: bool = False) -> dict[str, str]:
    """Lists the modules of torchvision's network whose outputs are our endpoints."""
    family = _family(type(network))
    if family == "vgg":
        return _vgg_hooks(network)
    hooks = dict(_HOOKS[family])
    if family == "googlenet" and aux:
        last = hooks.pop("logits")
        hooks |= {"aux1": "aux1", "aux2": "aux2", "logits": last}
    return hooks


def load_state(network: Any, state_dict: Mapping[str, np.ndarray]) -> None:
    """Loads weights by name into a network of torch, and checks the names.

    Raises:
      ValueError: A name is missing or unexpected.
    """
    import torch

    own = network.state_dict()
    wanted = {key for key in own if not key.endswith("num_batches_tracked")}
    if wanted != set(state_dict):
        raise ValueError(
            f"the state dict does not fit: missing {sorted(wanted - set(state_dict))}, "
            f"unexpected {sorted(set(state_dict) - wanted)}."
        )
    tensors = {key: torch.tensor(value) for key, value in state_dict.items()}
    network.load_state_dict({**own, **tensors})


def record(network: Any, hooks: Mapping[str, str]) -> tuple[dict[str, Any], Callable]:
    """Records the outputs of named modules of a network of torch.

    Returns:
      `(outputs, stop)`: a dict that the next run fills, and a function that ends the
      recording.
    """
    outputs: dict[str, Any] = {}

    def keep(name: str) -> Callable:
        # A copy, as the next module may work in place.
        return lambda module, inputs, output: outputs.update({name: output.clone()})

    handles = [
        network.get_submodule(path).register_forward_hook(keep(name))
        for name, path in hooks.items()
    ]

    def stop() -> None:
        for handle in handles:
            handle.remove()

    return outputs, stop


def run(network: Any, hooks: Mapping[str, str], images: Any) -> dict[str, Any]:
    """Runs a network of torch; returns the outputs of named modules and its own."""
    outputs, stop = record(network, hooks)
    result = network(images)
    stop()
    if isinstance(result, dict):
        own = {k: result[v] for k, v in _RESULTS.items() if v in result}
        outputs.update(own)
    return outputs


def to_our_axes(output: Any) -> np.ndarray:
    """Transposes [B, C, ...] to [B, ..., C], and maps of one pixel to [B, C]."""
    array = np.ascontiguousarray(np.moveaxis(output.detach().numpy(), 1, -1))
    return array.reshape(len(array), -1) if array.shape[1:-1] == (1, 1) else array


def run_torchvision(
    name: str,
    state_dict: Mapping[str, np.ndarray],
    images: np.ndarray,
    *,
    num_classes: int | None = None,
) -> dict[str, np.ndarray]:
    """Computes every endpoint in float32 with torchvision's network.

    Args:
      name: Name of our model, whose spec names a network of torchvision.
      state_dict: Weights by torchvision's names.
      images: [B, H, W, C].
      num_classes: Number of classes; None for torchvision's.

    Raises:
      ImportError: As for `build_torchvision`.
      ValueError: The state dict does not fit.
    """
    network = build_torchvision(name, num_classes=num_classes).eval()
    import torch

    load_state(network, state_dict)
    images = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    with torch.no_grad():
        outputs = run(network, list_hooks(network), images)
    return {name: to_our_axes(output) for name, output in outputs.items()}


def _family(builder: Any) -> str:
    """Returns the torchvision module of a builder or class, such as "resnet"."""
    return builder.__module__.rpartition(".")[2]


def _vgg_hooks(network: Any) -> dict[str, str]:
    hooks, block, layer = {}, 1, 0
    for place, module in enumerate(network.features):
        kind = type(module).__name__
        if kind == "ReLU":
            layer += 1
            hooks[f"conv{block}_{layer}"] = f"features.{place}"
        elif kind == "MaxPool2d":
            hooks[f"pool{block}"] = f"features.{place}"
            block, layer = block + 1, 0
    return {
        **hooks,
        "fc6": "classifier.1",
        "fc7": "classifier.4",
        "logits": "classifier.6",
    }


def _import_models() -> Any:
    try:
        from torchvision import models
    except RuntimeError as error:
        # Its extension was compiled for another build of torch.
        raise ImportError(f"torchvision does not work here: {error}") from error
    return models
