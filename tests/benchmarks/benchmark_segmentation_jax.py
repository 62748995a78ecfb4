"""The zoo's side of the segmentation benchmark, and what both sides are given."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchmark_rounds import seconds_per_call_within

import zoo
from zoo.ops.losses import segmentation_cross_entropy
from zoo.verify.deterministic import BRANCH_GAIN, fill_all, make_images
from zoo.weights.torch_format import from_torch, list_torch_shapes

AUX = 0.4
# Height and width, where they are not the network's own.
SIZES = {"pspnet_resnet50": (473, 473)}


def options(name: str) -> dict[str, Any]:
    """Returns the options of the network: with its auxiliary head, if it has one."""
    return {"aux": True} if zoo.get_spec(name).aux_losses else {}


def make_weights(name: str) -> dict[str, np.ndarray]:
    """Makes the state dict that both sides start from."""
    gain = BRANCH_GAIN if "resnet" in name or "frrn" in name else 1.0
    return fill_all(list_torch_shapes(name, **options(name)), branch_gain=gain)


def make_batch(name: str, count: int) -> np.ndarray:
    """Makes preprocessed images float32 [B, H, W, C]."""
    preprocess = zoo.get_spec(name).preprocess
    height, width = SIZES.get(name, preprocess.shape[:2])
    preprocess = dataclasses.replace(preprocess, size=height, width=width)
    return make_images(preprocess, count)


def make_masks(name: str, shape: tuple[int, int, int]) -> np.ndarray:
    """Makes masks int32 [B, h, w]: random classes."""
    classes = zoo.get_spec(name).num_classes
    return np.random.default_rng(0).integers(0, classes, shape).astype(np.int32)


class Side:
    """Everything that the process keeps between its turns."""

    def __init__(self, name: str, threads: int):
        # XLA takes all cores, whatever `threads` is.
        self.versions: dict[str, str] = {}
        self.name, self.aux = name, "aux" in options(name)
        self.model = zoo.build(name, **options(name))
        state = from_torch(name, make_weights(name), **options(name))
        self.variables = jax.tree.map(jnp.asarray, state)
        self.optimizer = optax.sgd(1e-4, momentum=0.9)
        infer, train = (zoo.cpu.compiler_options(training=t) for t in (False, True))
        self.infer = jax.jit(self._infer, compiler_options=infer)
        self.step = jax.jit(
            self._step, donate_argnums=(0, 1, 2), compiler_options=train
        )

    def _infer(self, variables, images, **training):
        if not self.aux:
            return self.model.apply(variables, images, **training)
        out = self.model.apply(variables, images, method="endpoints", **training)
        if training:
            (out, updated) = out
            return {k: out[k] for k in ("logits", "aux")}, updated
        return {k: out[k] for k in ("logits", "aux")}

    def _step(self, params, rest, slots, images, masks, key):
        def objective(params):
            out, updated = self._infer(
                {"params": params, **rest},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
            parts = [out["logits"], out["aux"]] if self.aux else [out]
            losses = [segmentation_cross_entropy(x, masks).mean() for x in parts]
            return sum(f * x for f, x in zip((1, AUX), losses, strict=False)), updated

        (loss, rest), grads = jax.value_and_grad(objective, has_aux=True)(params)
        updates, slots = self.optimizer.update(grads, slots, params)
        return optax.apply_updates(params, updates), rest, slots, loss

    def time(self, variant: str, kind: str, count: int, seconds: float) -> float:
        """Returns the seconds of a call, or of a training step."""
        images = jnp.asarray(make_batch(self.name, count))
        if kind == "inference":

            def infer():
                jax.block_until_ready(self.infer(self.variables, images))

            return seconds_per_call_within(infer, seconds)
        shapes = jax.eval_shape(self._infer, self.variables, images)
        shape = (shapes["logits"] if self.aux else shapes).shape[:3]
        masks = jnp.asarray(make_masks(self.name, shape))
        variables = jax.tree.map(jnp.copy, self.variables)
        params = variables.pop("params")
        carry = [params, variables, self.optimizer.init(params)]

        def step():
            *carry[:], loss = self.step(*carry, images, masks, jax.random.key(0))
            jax.block_until_ready(loss)

        return seconds_per_call_within(step, seconds)
