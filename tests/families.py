"""One small network for each family, for what must hold of all of them."""

import inspect
from pathlib import Path

import zoo


def family_of(name: str) -> str:
    """The file that a network is built in, such as "resnet"."""
    build = zoo.get_spec(name).build
    return Path(inspect.getfile(getattr(build, "func", build))).stem


def image_shape(name: str) -> tuple[int, int, int]:
    """(H, W, C) of the network's images."""
    pre = zoo.get_spec(name).preprocess
    return pre.size, pre.size, pre.channels


def smallest_of_each_family() -> list[str]:
    """Lists, by family, the network with the fewest multiply-adds."""
    smallest = {}
    for name in sorted(zoo.list_models(), key=lambda name: zoo.get_spec(name).macs):
        smallest.setdefault(family_of(name), name)
    return sorted(smallest.values())
