"""The paper's recipe for a large set of people, at its full size."""

import jax
import jax.numpy as jnp
import numpy as np

import zoo
from train.configs import get_config
from train.optim import make_optimizer, make_schedule
from train.state import create_state
from train.steps import make_prepare, make_train_step
from train.tasks import make_task
from zoo.summary import abstract_variables


def test_deepface_is_trained_as_in_the_paper():
    """A step of 128 photographs of 4,030 people, traced and lowered but not run."""
    config = get_config("faces_deepface")
    spec = zoo.get_spec(config.model.name)
    assert (spec.num_classes, config.data.batch_size, config.epochs) == (4030, 128, 15)
    module = zoo.build(spec.name)
    variables = abstract_variables(module, spec.preprocess.shape)
    steps = 15 * 4_400_000 // 128
    schedule = make_schedule(config.optim, steps)
    rates = [float(schedule(int(part * steps))) for part in (0, 0.49, 0.6, 0.99)]
    np.testing.assert_allclose(rates, [1e-2, 1e-2, 1e-3, 1e-4], rtol=1e-5)
    tx = make_optimizer(config.optim, schedule, variables["params"])
    step = make_train_step(
        module,
        make_task(spec, config.optim, config.data),
        tx,
        schedule=schedule,
        prepare=make_prepare(spec.preprocess, None),
        seed=0,
    )
    state = jax.eval_shape(lambda v: create_state(v, tx), variables)
    batch = {
        "image": jax.ShapeDtypeStruct((128, 152, 152, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((128,), jnp.int32),
        "index": jax.ShapeDtypeStruct((128,), jnp.int32),
    }
    after, scalars = jax.eval_shape(step, state, batch)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert {"loss", "identification", "learning_rate"} <= scalars.keys()
    assert "stablehlo" in jax.jit(step).lower(state, batch).as_text()
