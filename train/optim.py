"""Schedules, optimizers, and frozen parameters."""

import dataclasses
import logging
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from train.config import OptimConfig
from zoo.paths import flatten, match_paths, unflatten

logger = logging.getLogger("train")


def scale_warmup(config: OptimConfig, total_steps: int) -> OptimConfig:
    """Shortens a warm-up that is too long to a tenth of the training, with a warning.

    Args:
      config: The optimizer's settings, including `warmup_steps`.
      total_steps: The length of the training, in steps.
    """
    if not 0 < total_steps <= config.warmup_steps:
        return config
    shorter = total_steps // 10
    logger.warning(
        "optim.warmup_steps=%d is not less than the %d steps of the run; the warm-up "
        "takes %d.",
        config.warmup_steps,
        total_steps,
        shorter,
    )
    return dataclasses.replace(config, warmup_steps=shorter)


def make_schedule(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """Makes the learning rate as a function of the step.

    Args:
      config: The schedule and its settings.
      total_steps: The length of the training, in steps, warm-up included.

    Raises:
      ValueError: The warm-up is as long as the training.
    """
    warmup, rate = config.warmup_steps, config.learning_rate
    if warmup >= total_steps:
        raise ValueError(
            f"optim.warmup_steps must be less than the {total_steps} steps of the "
            f"training, got {warmup}."
        )
    if config.schedule == "step":
        # Boundaries are counted from the first step, warm-up included, as in papers.
        drops = {}
        for boundary in config.boundaries:
            step = round(boundary * total_steps) - warmup
            drops[step] = drops.get(step, 1.0) * config.factor
        after = optax.piecewise_constant_schedule(rate, drops)
    elif config.schedule == "cosine":
        after = optax.cosine_decay_schedule(rate, total_steps - warmup)
    elif config.schedule == "polynomial":
        after = optax.polynomial_schedule(rate, 0.0, config.power, total_steps - warmup)
    elif config.schedule == "inverse":
        # Caffe's "inv".
        def after(step):
            return rate * (1 + config.gamma * step) ** -config.power

    else:
        after = optax.constant_schedule(rate)
    if not warmup:
        return after
    rise = optax.linear_schedule(config.warmup_rate, rate, warmup)
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(
    config: OptimConfig, schedule: optax.Schedule, params: Any
) -> optax.GradientTransformation:
    """Makes the optimizer of the trained parameters.

    Args:
      config: The optimizer and its settings.
      schedule: The learning rate by step.
      params: All parameters, or their shapes; the patterns of `config.rates` and
        `config.decay_also` must match some of them.

    Raises:
      ValueError: A pattern matches nothing, or a rate is not a number.
    """
    mask = None
    also = match_paths([*flatten(params)], config.decay_also)
    if config.decay == "kernels":
        mask = partial(_choose_decayed, also=also)
    elif also:
        raise ValueError(
            f"optim.decay_also={config.decay_also} is for optim.decay=kernels; with "
            f"{config.decay!r} it changes nothing."
        )
    decay = optax.add_decayed_weights(config.weight_decay, mask)
    parts = []
    if config.clip_norm is not None:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    if config.name == "sgd":
        parts += [decay, optax.trace(config.momentum, nesterov=config.nesterov)]
    else:
        adam = optax.scale_by_adam(b1=config.momentum, nesterov=config.nesterov)
        parts += [adam, decay]
    if config.rates:
        parts.append(_scale_by_path(parse_rates(config.rates, params)))
    parts.append(optax.scale_by_learning_rate(schedule))
    if config.filter_rms is not None:
        parts.append(_limit_filters(config.filter_rms))
    return optax.chain(*parts)


def _choose_decayed(params: Any, also: set[str]) -> Any:
    """Returns the mask of decayed parameters: kernels, and the paths in `also`."""
    flat = flatten(params)
    return unflatten({k: jnp.ndim(p) > 1 or k in also for k, p in flat.items()})


def _limit_filters(limit: float) -> optax.GradientTransformation:
    """Limits the root mean square of convolution filters after each update.

    Reference: Zeiler and Fergus, Visualizing and Understanding Convolutional Networks,
    2013, section 3.1.
    """

    def change(update, param):
        if jnp.ndim(param) != 4:
            return update
        after = param + update
        rms = jnp.sqrt(jnp.square(after).mean((0, 1, 2), keepdims=True))
        return after * jnp.minimum(1.0, limit / rms) - param

    def update(updates, params):
        return jax.tree.map(change, updates, params)

    return optax.stateless(update)


def parse_rates(rates: tuple[str, ...], params: Any) -> dict[str, float]:
    """Parses PATTERN=FACTOR pairs into a factor for each matching path.

    If several patterns match a path, the last one's factor counts.
    """
    factors = {}
    for text in rates:
        pattern, _, number = text.rpartition("=")
        try:
            factor = float(number)
        except ValueError:
            factor = -1.0
        if not pattern or not 0 <= factor < math.inf:
            raise ValueError(
                f"rates must be PATTERN=FACTOR with a finite FACTOR >= 0, got {text!r}."
            )
        factors |= dict.fromkeys(match_paths([*flatten(params)], [pattern]), factor)
    return factors


def _scale_by_path(factors: dict[str, float]) -> optax.GradientTransformation:
    def update(updates, params=None):
        flat = flatten(updates)
        return unflatten({k: v * factors.get(k, 1.0) for k, v in flat.items()})

    return optax.stateless(update)


def frozen_paths(config: OptimConfig, params: Any, epoch: int) -> tuple[str, ...]:
    """Lists the parameters that are frozen in an epoch.

    Args:
      config: The patterns `freeze` and `unfreeze`.
      params: All parameters, or their shapes.
      epoch: The epoch, counted from 0.

    Raises:
      ValueError: A pattern matches nothing, or an entry is not EPOCH:PATTERN.
    """
    paths = [*flatten(params)]
    frozen = match_paths(paths, config.freeze)
    for start, pattern in parse_unfreeze(config.unfreeze):
        thawed = match_paths(paths, [pattern])
        if start <= epoch:
            frozen -= thawed
    return tuple(sorted(frozen))


def parse_unfreeze(entries: tuple[str, ...]) -> list[tuple[int, str]]:
    """Parses EPOCH:PATTERN entries.

    Raises:
      ValueError: An entry has another form.
    """
    out = []
    for entry in entries:
        start, _, pattern = entry.partition(":")
        if not (start.isdigit() and pattern):
            raise ValueError(f"unfreeze must be EPOCH:PATTERN, got {entry!r}.")
        out.append((int(start), pattern))
    return out
