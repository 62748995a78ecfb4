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


# Options by which a network of the family is a few channels wide, by the family's file.
# No two layers that follow each other have the same width, where they need not.
NARROW = {
    "alexnet": dict(widths=(4, 6, 8, 10, 4), dense=24),
    "vgg": dict(widths=(4, 5, 6, 7, 3), dense=24),
    "googlenet": dict(
        stem=(4, 5, 6),
        modules={
            module: tuple(2 + (3 * i + 5 * j) % 7 for j in range(6))
            for i, module in enumerate(("3a", "4a", "4d", "5a"))
        },
    ),
    "he_init": dict(widths=(4, 5, 3), depths=(3, 2), dense=24),
    "resnet": dict(width=4),
    "fcn": dict(widths=(4, 4, 8, 8, 8), dense=16),
    "ssd_vgg": dict(widths=(4, 5, 6, 7, 3), dense=8),
    "fast_rcnn": dict(widths=(4, 5, 6, 7, 3), dense=16),
}
# Networks with the same parts and fewer layers than the registered ones.
_SHALLOW = {
    name: dict(blocks=(1, 1, 1)) for name in ("cifar_resnet20", "cifar_resnet164_v2")
}


def narrow(name: str) -> dict[str, Any]:
    """Options of `zoo.build` by which the network is a few channels wide."""
    return NARROW.get(family_of(name), {})


def build_small(name: str, **options: Any) -> nn.Module:
    """Builds a narrow network of a family and, where it is deep, a shallow one.

    Args:
      name: Name of a registered network.
      **options: Options of `zoo.build`.
    """
    spec = zoo.get_spec(name)
    options = {"num_classes": spec.num_classes, **narrow(name), **options}
    return spec.build(**_SHALLOW.get(name, {}), **options)


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
