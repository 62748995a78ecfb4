"""Losses of auxiliary heads: added with their factors; free where there are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_classifier import PREPROCESS, Backbone, make_batch
from tiny_runs import flat

from train.config import OptimConfig
from train.optim import make_optimizer, make_schedule
from train.state import create_state
from train.steps import make_prepare, make_train_step
from train.tasks import Classification, softmax_cross_entropy
from zoo.layers import Classifier, make_head


class TwoHeads(nn.Module):
    """A classifier with one auxiliary head after its first stage."""

    def setup(self):
        self.backbone = Backbone()
        self.head, self.aux1 = make_head(3), make_head(3)

    def __call__(self, images, train=False):
        return self.endpoints(images, train)["logits"]

    def endpoints(self, images, train=False):
        out = self.backbone(images, train=train)
        if train or self.is_initializing():
            out["aux1"] = self.aux1(out["stage1"].mean((1, 2)))
        return {**out, "logits": self.head(out["pool"])}


def make_step_with(model, aux_losses):
    config = OptimConfig(learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    schedule = make_schedule(config, 10)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    tx = make_optimizer(config, schedule, variables["params"])
    step = make_train_step(
        model,
        Classification(softmax_cross_entropy, aux_losses),
        tx,
        schedule=schedule,
        prepare=make_prepare(PREPROCESS, None),
        seed=0,
    )
    return create_state(variables, tx), jax.jit(step)


def test_auxiliary_losses_are_added_with_their_factors(cheap_jit):
    model, batch = TwoHeads(), make_batch()
    images = (batch["image"].astype(jnp.float32) / 255 - 0.5) / 0.5
    state, step = make_step_with(model, (("aux1", 0.3), ("aux2", 9.0)))

    def objective(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        out, _ = model.apply(
            variables, images, train=True, mutable=["batch_stats"], method="endpoints"
        )
        rows = jnp.arange(len(images)), batch["label"]
        losses = [-jax.nn.log_softmax(out[k])[rows].mean() for k in ("logits", "aux1")]
        return losses[0] + 0.3 * losses[1], (out["logits"], losses)

    gradients = cheap_jit(jax.value_and_grad(objective, has_aux=True))
    (total, (logits, losses)), grads = gradients(state.params)
    assert losses[1] > 0.5
    after, scalars = step(state, batch)
    assert float(scalars["loss"]) == pytest.approx(float(total), rel=1e-5)
    hits = np.asarray(logits).argmax(-1) == np.asarray(batch["label"])
    assert float(scalars["accuracy"]) == pytest.approx(hits.mean())
    for path, grad in flat(grads).items():
        moved = flat(state.params)[path] - flat(after.params)[path]
        np.testing.assert_allclose(moved, 0.1 * grad, atol=1e-6, err_msg=path)
        assert grad.any() or "conv/bias" in path


def test_a_network_without_auxiliary_heads_compiles_to_what_it_was():
    model, batch = Classifier(Backbone(), make_head(3)), make_batch()
    texts = []
    for aux_losses in ((), (("aux1", 0.3),)):
        state, step = make_step_with(model, aux_losses)
        texts.append(step.lower(state, batch).as_text())
    assert texts[0] == texts[1]
