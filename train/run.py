"""A run: the parts that it is made of, and its result."""

import dataclasses
import shlex
from functools import cached_property
from pathlib import Path
from typing import Any

import optax
from flax import linen as nn
from jax.sharding import Mesh

from train import optim
from train.config import TrainConfig
from train.data import Source
from train.state import TrainState, create_state
from train.steps import Step, make_prepare, make_train_step
from train.task import Evaluated, Task
from zoo.ops import augment
from zoo.spec import Card, ModelSpec, Preprocess


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of a run.

    Attributes:
      config: The config of the run.
      spec: The specification of the network.
      model: The network.
      variables: The variables that training starts from.
      card: The card that checkpoints store with the variables.
      train_source: The images to train on, fitted to the network's input.
      eval_source: The images to evaluate on, fitted to the network's input.
      train_preprocess: The network's input in training; that in evaluation is the
        card's.
      mesh: The devices.
      task: The task that the network is trained for.
      steps_per_epoch: The number of whole batches in the training set.
      total_steps: The length of the training, in steps.
    """

    config: TrainConfig
    spec: ModelSpec
    model: nn.Module
    variables: dict[str, Any]
    card: Card
    train_source: Source
    eval_source: Source
    train_preprocess: Preprocess
    mesh: Mesh
    task: Task
    steps_per_epoch: int
    total_steps: int

    @cached_property
    def schedule(self) -> optax.Schedule:
        """The learning rate by step."""
        return optim.make_schedule(self.config.optim, self.total_steps)

    @cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer of the trained parameters."""
        return optim.make_optimizer(
            self.config.optim, self.schedule, self.variables["params"]
        )

    def frozen(self, step: int) -> tuple[str, ...]:
        """Returns the paths of the parameters that are frozen at a step."""
        epoch, params = step // self.steps_per_epoch, self.variables["params"]
        return optim.frozen_paths(self.config.optim, params, epoch)

    def create_state(self, step: int = 0) -> TrainState:
        """Creates an initial state with the structure that it has at a step."""
        return create_state(
            self.variables,
            self.optimizer,
            frozen=self.frozen(step),
            ema=self.config.optim.ema_decay is not None,
        )

    def make_step(self, step: int) -> Step:
        """Makes the training step for the parameters that are trained at a step."""
        config = self.config
        fn = augment.compose(config.data.augment) if config.data.augment else None
        return make_train_step(
            self.model,
            self.task,
            self.optimizer,
            schedule=self.schedule,
            prepare=make_prepare(self.train_preprocess, fn),
            seed=config.seed,
            frozen=self.frozen(step),
            ema_decay=config.optim.ema_decay,
            accumulate=config.optim.accumulate,
        )


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
      run_dir: The folder of the run.
      experiment: The parts of the run.
      state: The state after the last step that was run.
      finished: False if a signal stopped the run, which `resume` can continue.
      evaluated: The result of the last evaluation; see `train.tasks`. None if a signal
        stopped the run, which then is not evaluated.
      seconds: The wall time of all parts of the run, compilation included.
      first_step_seconds: The time from the call of `fit` until the first steps were
        done.
      parts: The number of parts: one plus the number of times the run was resumed.
    """

    run_dir: Path
    experiment: Experiment
    state: TrainState
    finished: bool
    evaluated: Evaluated | None
    seconds: float
    first_step_seconds: float
    parts: int = 1

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the last evaluation.

        Raises:
          ValueError: A signal stopped the run.
        """
        if self.evaluated is None:
            raise ValueError(
                f"the run in {self.run_dir} was stopped after step "
                f"{int(self.state.step)} and has no metrics; "
                f"`canon-zoo train resume {shlex.quote(str(self.run_dir))}` goes on."
            )
        return self.evaluated.metrics
