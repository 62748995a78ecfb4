"""The experiments by name; each file has the command, the cost and the result."""

import dataclasses
from collections.abc import Callable
from functools import partial

from train.config import TrainConfig
from train.configs import cifar10_resnet, digits_lenet5
from zoo.registry import get_spec, unknown

CONFIGS: dict[str, Callable[[], TrainConfig]] = {
    "digits_lenet5": digits_lenet5.config,
    "digits_lenet5_modern": digits_lenet5.modern,
    "cifar10_resnet20_short": cifar10_resnet.short,
    **{
        f"cifar10_resnet{depth}": partial(cifar10_resnet.config, depth)
        for depth in (20, 32, 44, 56, 110, 1202)
    },
    **{
        f"cifar10_plain{depth}": partial(cifar10_resnet.config, depth, "plain")
        for depth in (20, 32, 44, 56, 110)
    },
}


def get_config(name: str) -> TrainConfig:
    """Returns an experiment; NAME_tiny is a few steps of it on the embedded digits.

    Raises:
      ValueError: There is none of that name; the message has the nearest names.
    """
    base = name.removesuffix("_tiny")
    if base not in CONFIGS:
        raise ValueError(unknown("config", name, CONFIGS))
    config = CONFIGS[base]()
    return tiny(config) if name != base else config


def tiny(config: TrainConfig) -> TrainConfig:
    """Shrinks an experiment to three small steps on digits: a test of its plumbing."""
    color = {1: "grey", 3: "rgb"}[get_spec(config.model.name).preprocess.channels]
    data = dataclasses.replace(
        config.data,
        dataset="digits",
        color=color,
        per_class=2,
        batch_size=8,
        eval_batch_size=72,
    )
    optim = dataclasses.replace(config.optim, warmup_steps=0)
    return dataclasses.replace(config, data=data, optim=optim, steps=3, log_every=1)
