"""The zoo's side of the classifiers' benchmark; it runs in its own process."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchmark_rounds import seconds_per_call_within

import zoo
from zoo.verify.deterministic import BRANCH_GAIN, fill_all, make_images, make_labels
from zoo.weights.torch_format import from_torch, list_torch_shapes


def make_weights(name: str) -> dict[str, np.ndarray]:
    """Makes the state dict that the zoo and torchvision start from."""
    gain = BRANCH_GAIN if "resnet" in name else 1.0
    return fill_all(list_torch_shapes(name), branch_gain=gain)


class Side:
    """Everything that the process keeps between its turns."""

    def __init__(self, name: str, dtype: str):
        spec = zoo.get_spec(name)
        self.preprocess, self.num_classes = spec.preprocess, spec.num_classes
        self.model, self.dtype = zoo.build(name, dtype=jnp.dtype(dtype)), dtype
        self.variables = jax.tree.map(jnp.asarray, from_torch(name, make_weights(name)))
        options = zoo.cpu.compiler_options()
        self.infer = jax.jit(self.model.apply, compiler_options=options)
        self.optimizer = optax.sgd(1e-3, momentum=0.9)
        options = zoo.cpu.compiler_options(training=True)
        self.train = jax.jit(self._step, donate_argnums=0, compiler_options=options)
        self.state = None

    def parameters(self) -> int:
        """Counts the trained parameters."""
        return sum(p.size for p in jax.tree.leaves(self.variables["params"]))

    def _step(self, state, images, labels):
        params, rest, slots, key = state
        key, dropout = jax.random.split(key)

        def objective(params):
            logits, new = self.model.apply(
                {"params": params, **rest},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout},
            )
            logits = logits.astype(jnp.float32)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), new

        (loss, rest), grads = jax.value_and_grad(objective, has_aux=True)(params)
        updates, slots = self.optimizer.update(grads, slots, params)
        return (optax.apply_updates(params, updates), rest, slots, key), loss

    def images(self, batch: int) -> jax.Array:
        """Makes preprocessed float32 images [B, H, W, C]."""
        return jnp.asarray(make_images(self.preprocess, batch))

    def logits(self, batch: int) -> np.ndarray:
        """Classifies the first images."""
        return np.asarray(self.infer(self.variables, self.images(batch)))

    def time(self, kind: str, batch: int, seconds: float) -> float:
        """Returns the seconds of a call, or of a training step."""
        images = self.images(batch)
        if kind == "inference":
            return seconds_per_call_within(
                lambda: self.infer(self.variables, images).block_until_ready(), seconds
            )
        labels = jnp.asarray(make_labels(self.num_classes, batch))
        if self.state is None:
            # A copy, since the step donates it.
            rest = jax.tree.map(jnp.copy, self.variables)
            params, key = rest.pop("params"), jax.random.key(0)
            self.state = params, rest, self.optimizer.init(params), key

        def step():
            self.state, loss = self.train(self.state, images, labels)
            jax.block_until_ready((self.state, loss))

        return seconds_per_call_within(step, seconds)

    def products_per_second(self, seconds: float) -> float:
        """Multiplies large square matrices: multiply-adds per second."""
        n = 2048 if jax.default_backend() == "cpu" else 8192
        a = jnp.ones((n, n), self.dtype)
        multiply = jax.jit(jnp.matmul)
        call = seconds_per_call_within(
            lambda: multiply(a, a).block_until_ready(), seconds
        )
        return n**3 / call
