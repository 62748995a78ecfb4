"""One small classifier for each family, for what must hold of all of them."""

import inspect
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

import zoo


def family_of(name: str) -> str:
    """The file that a network is built in, such as "resnet"."""
    build = zoo.get_spec(name).build
    return Path(inspect.getfile(getattr(build, "func", build))).stem


def image_shape(name: str) -> tuple[int, int, int]:
    """(H, W, C) of the network's images."""
    pre = zoo.get_spec(name).preprocess
    return pre.shape


def smallest_of_each_family() -> list[str]:
    """Lists, by family, the classifier with the fewest multiply-adds."""
    smallest = {}
    names = zoo.list_models(task="classification")
    for name in sorted(names, key=lambda name: zoo.get_spec(name).macs):
        smallest.setdefault(family_of(name), name)
    return sorted(smallest.values())


# Networks of the same parts, whose tracing and compiling takes seconds.
_SHALLOW = {"cifar_resnet20": 8, "cifar_resnet164_v2": 11}


def build_small(name: str, **options: Any) -> nn.Module:
    """Builds the network, or where it is deep, one of its family with less layers."""
    spec = zoo.get_spec(name)
    depth = {"depth": _SHALLOW[name]} if name in _SHALLOW else {}
    return spec.build(num_classes=spec.num_classes, **depth, **options)


def train(model: nn.Module, variables: Any, images: Any) -> tuple:
    """The gradients of a loss, the logits, and new statistics."""

    def loss(params):
        logits, new = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return jnp.square(logits).sum(), (logits, new)

    return jax.grad(loss, has_aux=True)(variables["params"])
