"""The JAX sides of the classifiers' benchmark: the zoo, Keras, a public Flax ResNet.

Each is reduced to two pure functions, which one and the same code compiles, feeds,
differentiates and clocks. A side runs in a process of its own.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchmark_rounds import seconds_per_call_within

import zoo
from zoo.weights.deterministic import fill_all, make_images, make_labels
from zoo.weights.torch_format import from_torch, list_torch_shapes

# What they have of the networks that are compared.
KERAS = {"vgg16": "VGG16", "resnet50": "ResNet50"}
JAX_RESNET = {"resnet18": "ResNet18", "resnet50": "ResNet50"}


class Network(NamedTuple):
    """A network as values and functions.

    Attributes:
      params: What is trained.
      rest: What else there is, such as running statistics.
      infer: (params, rest, images) -> logits.
      train: (params, rest, images, key) -> (logits, new rest).
    """

    params: Any
    rest: Any
    infer: Callable
    train: Callable


def make_weights(name: str) -> dict[str, np.ndarray]:
    """Makes the state dict that the zoo and torchvision start from."""
    residual = name.startswith("resnet")
    return fill_all(list_torch_shapes(name), residual=residual)


def create_zoo(name: str, dtype: str) -> Network:
    """Creates the zoo's network."""
    model = zoo.build(name, dtype=jnp.dtype(dtype))
    variables = jax.tree.map(jnp.asarray, from_torch(name, make_weights(name)))
    return _from_linen(model, variables, train=True)


def create_jax_resnet(name: str, dtype: str) -> Network:
    """Creates the network of the package jax-resnet, `nn.Conv` and all."""
    import jax_resnet

    model = getattr(jax_resnet, JAX_RESNET[name])(n_classes=1000)
    images = jnp.zeros((1, 224, 224, 3))
    return _from_linen(model, jax.jit(model.init)(jax.random.key(0), images))


def _from_linen(model, variables, **training) -> Network:
    params = variables["params"]
    rest = {k: v for k, v in variables.items() if k != "params"}

    def infer(params, rest, images):
        return model.apply({"params": params, **rest}, images)

    def train(params, rest, images, key):
        return model.apply(
            {"params": params, **rest},
            images,
            mutable=["batch_stats"],
            rngs={"dropout": key},
            **training,
        )

    return Network(params, rest, infer, train)


def create_keras(name: str, dtype: str) -> Network:
    """Creates Keras's network on its JAX backend."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    build = getattr(keras.applications, KERAS[name])
    model = build(weights=None, classifier_activation=None)

    def infer(params, rest, images):
        return model.stateless_call(params, rest, images, training=False)[0]

    def train(params, rest, images, key):
        return model.stateless_call(params, rest, images, training=True)

    parts = model.trainable_variables, model.non_trainable_variables
    return Network(*[[v.value for v in part] for part in parts], infer, train)


CREATE = {"zoo": create_zoo, "keras": create_keras, "jax_resnet": create_jax_resnet}


class Side:
    """Everything that the process keeps between its turns."""

    def __init__(self, side: str, name: str, dtype: str):
        self.network = CREATE[side](name, dtype)
        self.preprocess = zoo.get_spec(name).preprocess
        self.dtype = dtype
        self.infer = jax.jit(self.network.infer)
        self.optimizer = optax.sgd(1e-3, momentum=0.9)
        self.train = jax.jit(self._step, donate_argnums=0)
        self.state = None

    def parameters(self) -> int:
        """Counts what is trained."""
        return sum(p.size for p in jax.tree.leaves(self.network.params))

    def _step(self, state, images, labels):
        params, rest, slots, key = state
        key, dropout = jax.random.split(key)

        def objective(params):
            logits, new = self.network.train(params, rest, images, dropout)
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
        return np.asarray(self.infer(*self.network[:2], self.images(batch)))

    def time(self, kind: str, batch: int, seconds: float) -> float:
        """Returns the seconds of a call, or of a training step."""
        images = self.images(batch)
        if kind == "inference":
            variables = self.network[:2]
            return seconds_per_call_within(
                lambda: jax.block_until_ready(self.infer(*variables, images)), seconds
            )
        labels = jnp.asarray(make_labels(1000, batch))
        if self.state is None:
            # A copy: the step donates it.
            params, rest = jax.tree.map(jnp.copy, self.network[:2])
            key = jax.random.key(0)
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


_side: list[Side] = []


def start(side: str, name: str, dtype: str) -> int:
    """Creates the side; returns its number of parameters."""
    _side[:] = [Side(side, name, dtype)]
    return _side[0].parameters()


def call(name: str, *arguments: Any) -> Any:
    """Calls a method of the side, by name."""
    return getattr(_side[0], name)(*arguments)
