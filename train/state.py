"""The state of a training run, as a pytree."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from zoo.transfer import merge, split


@flax.struct.dataclass
class TrainState:
    """Everything that changes from step to step.

    It has no random key: random numbers depend on the seed and the step alone.

    Attributes:
      step: int32 [], the number of steps done.
      params: All parameters, including frozen ones.
      batch_stats: Running averages of batch norm; empty without batch norm.
      opt_state: The optimizer's state for the trained parameters.
      ema: Moving averages {"params": of trained ones, "batch_stats": ...}, or None.
    """

    step: jax.Array
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: Any
    ema: dict[str, Any] | None

    def variables(self) -> dict[str, Any]:
        """Returns the model's variables as they are trained."""
        stats = {"batch_stats": self.batch_stats} if self.batch_stats else {}
        return {"params": self.params, **stats}

    def eval_variables(self) -> dict[str, Any]:
        """Returns the model's variables to evaluate: moving averages, if there are."""
        if self.ema is None:
            return self.variables()
        # Frozen parameters have no average, since they do not change.
        params = merge(self.params, self.ema["params"])
        averages = self.replace(params=params, batch_stats=self.ema["batch_stats"])
        return averages.variables()


def create_state(
    variables: dict[str, Any],
    tx: optax.GradientTransformation,
    *,
    frozen: tuple[str, ...] = (),
    ema: bool = False,
) -> TrainState:
    """Creates the state before the first step.

    Args:
      variables: The model's variables.
      tx: The optimizer of the trained parameters.
      frozen: Paths or path patterns of the parameters that are not trained.
      ema: Whether to keep a moving average of the trained parameters.
    """
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    trained, _ = split(params, frozen)
    averages = {"params": trained, "batch_stats": batch_stats}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=tx.init(trained),
        # Copies, since a step donates its buffers, and none may be donated twice.
        ema=jax.tree.map(jnp.copy, averages) if ema else None,
    )


def change_frozen(
    state: TrainState, tx: optax.GradientTransformation, frozen: tuple[str, ...]
) -> TrainState:
    """Adapts a state to another set of frozen parameters.

    Optimizer states and averages of parameters that stay trained are kept; those of
    newly trained parameters start as at the first step.
    """
    fresh = create_state(
        state.variables(), tx, frozen=frozen, ema=state.ema is not None
    )
    return state.replace(
        opt_state=_take_known(fresh.opt_state, state.opt_state),
        ema=_take_known(fresh.ema, state.ema),
    )


def _take_known(fresh: Any, old: Any) -> Any:
    known = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(old)
    }
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: known.get(jax.tree_util.keystr(path), leaf), fresh
    )
