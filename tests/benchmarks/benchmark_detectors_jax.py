"""The zoo's side of the detectors' benchmark, and what both sides are given."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchmark_rounds import seconds_per_call_within

import zoo
from zoo.detection.types import Targets
from zoo.verify.deterministic import BRANCH_GAIN, random_bytes
from zoo.verify.parity import deterministic_state
from zoo.weights.torch_format import from_torch

# Height and width of the photographs.
SIZES = {"ssd300_vgg16": (375, 500), "faster_rcnn_resnet50_fpn": (600, 800)}
OBJECTS = 8
# Maps of the network that both sides compute in the cells "network".
MAPS = {"faster_rcnn_resnet50_fpn": ("p2", "p3", "p4", "p5", "p6")}


def make_photographs(name: str, count: int) -> np.ndarray:
    """Makes uint8 images [B, h, w, 3]: waves with noise on them."""
    height, width = SIZES[name]
    y, x, c = np.ogrid[:height, :width, :3]
    waves = np.abs((7 * y + 5 * x + 60 * c) % 510 - 255)
    noise = random_bytes(name, count * waves.size).reshape(count, *waves.shape)
    return ((waves + noise.astype(np.int64)) // 2).astype(np.uint8)


def make_objects(name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes boxes float32 [B, N, 4] in the photographs' pixels, and classes [B, N]."""
    rng = np.random.default_rng(0)
    limits = np.array(SIZES[name][::-1], np.float32)
    low = rng.uniform(0, 0.7, (count, OBJECTS, 2)) * limits
    side = rng.uniform(0.1, 0.3, (count, OBJECTS, 2)) * limits
    classes = rng.integers(0, 90, (count, OBJECTS)).astype(np.int32)
    return np.concatenate([low, low + side], axis=-1).astype(np.float32), classes


class Side:
    """Everything that the process keeps between its turns."""

    def __init__(self, name: str, threads: int):
        # XLA takes all cores, whatever `threads` is.
        self.versions: dict[str, str] = {}
        self.name, self.model = name, zoo.build(name)
        gain = BRANCH_GAIN if "resnet" in name else 1.0
        state = from_torch(name, deterministic_state(name, branch_gain=gain))
        self.variables = jax.tree.map(jnp.asarray, state)
        self.detect = zoo.make_detector(self.model)
        self.fit = jax.jit(
            partial(zoo.resize_and_pad, preprocess=self.model.preprocess)
        )
        options = zoo.cpu.compiler_options()
        self.network = jax.jit(self._network, compiler_options=options)
        self.optimizer = optax.sgd(1e-4, momentum=0.9)
        options = zoo.cpu.compiler_options(training=True)
        self.step = jax.jit(self._step, donate_argnums=(0, 1), compiler_options=options)

    def _network(self, variables, images):
        if self.name in MAPS:
            return zoo.features(self.model, variables, images, MAPS[self.name])
        return self.model.apply(variables, images)

    def _step(self, params, slots, rest, images, targets, sizes, key):
        def objective(params):
            outputs, _ = self.model.apply(
                {"params": params, **rest},
                images,
                sizes,
                train=True,
                targets=targets,
                rngs={"sample": key, "dropout": key},
                mutable=["batch_stats"],
            )
            return sum(self.model.losses(outputs, targets).values())

        loss, grads = jax.value_and_grad(objective)(params)
        updates, slots = self.optimizer.update(grads, slots, params)
        return optax.apply_updates(params, updates), slots, loss

    def time(self, variant: str, kind: str, count: int, seconds: float) -> float:
        """Returns the seconds of a call, or of a training step."""
        photographs = jnp.asarray(make_photographs(self.name, count))
        if kind == "detect":
            run = partial(self.detect, self.variables, photographs)
        elif kind == "network":
            images = self.fit(photographs).images
            run = partial(self.network, self.variables, images)
        else:
            return self._time_training(photographs, seconds)
        return seconds_per_call_within(lambda: jax.block_until_ready(run()), seconds)

    def _time_training(self, photographs, seconds) -> float:
        fitted = self.fit(photographs)
        boxes, classes = make_objects(self.name, len(photographs))
        size = np.array(photographs.shape[1:3], np.float32)
        scale = np.asarray(fitted.sizes, np.float32) / size
        boxes = boxes * np.tile(scale[:, None, ::-1], 2)
        targets = Targets(boxes, classes, np.ones(classes.shape, bool))
        params = jax.tree.map(jnp.copy, self.variables["params"])
        rest = {k: v for k, v in self.variables.items() if k != "params"}
        carry = [params, self.optimizer.init(params)]
        sizes = fitted.sizes.astype(jnp.float32)

        def step():
            *carry[:], loss = self.step(
                *carry, rest, fitted.images, targets, sizes, jax.random.key(0)
            )
            jax.block_until_ready(loss)

        return seconds_per_call_within(step, seconds)
