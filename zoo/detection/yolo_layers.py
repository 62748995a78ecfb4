"""The layers of YOLO's own networks.

Reference:
  Redmon, Divvala, Girshick, Farhadi, You Only Look Once: Unified, Real-Time Object
  Detection, 2016, section 2.1.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from zoo.checks import check_images
from zoo.detection.contract import ClassOutputs
from zoo.layers import BatchNorm, Conv, FullyConnected, remat_stage
from zoo.ops.pooling import max_pool

Array = jax.Array

# Of the images in pixels, of the grid of cells, and boxes of a cell.
SIZE, GRID, PREDICTORS = 448, 7, 2
LEAK = 0.1


class YOLOBackbone(nn.Module):
    """Figure 3's convolutions, each followed by a leaky ReLU.

    Attributes:
      network: Its name, for messages.
      stages: Of convolutions (window, channels[, stride]); 2 x 2 pools are between.
      batch_norm: Whether each convolution has batch norm in place of a bias.
      kernel_init: Initialiser of the convolutions.
      remat: Recompute each stage's activations in the backward pass.
    """

    network: str
    stages: tuple[tuple[tuple[int, ...], ...], ...]
    batch_norm: bool = False
    kernel_init: Callable = nn.initializers.lecun_normal()
    remat: bool = False
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Array, train: bool = False) -> dict[str, Array]:
        check_images(images, self.network, size=SIZE)
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        options = dict(use_bias=not self.batch_norm, kernel_init=self.kernel_init)
        conv = partial(Conv, **options, **types)

        def stage(self, x: Array, number: int, first: int) -> dict[str, Array]:
            out = {}
            for i, (window, channels, *stride) in enumerate(self.stages[number], first):
                steps = dict(stride=stride[0] if stride else 1, padding=window // 2)
                x = conv(channels, window, name=f"conv{i}", **steps)(x)
                if self.batch_norm:
                    x = BatchNorm(name=f"bn{i}", **types)(x, train=train)
                x = out[f"conv{i}"] = nn.leaky_relu(x, LEAK)
            if number < len(self.stages) - 1:
                out[f"pool{number + 1}"] = max_pool(x, 2, 2)
            return out

        out, x, first = {}, images, 1
        for number, convs in enumerate(self.stages):
            run = partial(stage, number=number, first=first)
            out |= remat_stage(run, self.remat)(self, x)
            x, first = [*out.values()][-1], first + len(convs)
        return out


class DenseHead(nn.Module):
    """Dense layers that see the whole image, the last of which says all cells' boxes.

    Its outputs stand as Darknet's: all cells' classes, then all confidences, then all
    boxes.

    Attributes:
      num_classes: K.
      hidden: Outputs of the layers before. The last of these has a leaky ReLU; the
        others are linear, as in Darknet's file of Fast YOLO.
      dropout: Rate before the last layer.
      kernel_init: Initialiser of all layers.
    """

    num_classes: int
    hidden: tuple[int, ...]
    dropout: float = 0.5
    kernel_init: Callable = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> tuple[dict, dict]:
        cells, per_cell = GRID**2, self.num_classes + 5 * PREDICTORS
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        dense = partial(nn.Dense, kernel_init=self.kernel_init, **types)
        first = partial(FullyConnected, kernel_init=self.kernel_init, window=GRID)
        features = {}
        for i, outputs in enumerate((*self.hidden, cells * per_cell), start=1):
            layer = partial(first, **types) if i == 1 else dense
            x = layer(outputs, name=f"fc{i}")(x)
            if i == len(self.hidden):
                drop = nn.Dropout(self.dropout, deterministic=not train, name="drop")
                x = features[f"fc{i}"] = drop(nn.leaky_relu(x, LEAK))
            elif i < len(self.hidden):
                features[f"fc{i}"] = x
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        ends = [cells * self.num_classes, cells * (self.num_classes + PREDICTORS)]
        classes, confidences, boxes = jnp.split(x, ends, axis=1)
        grid = (x.shape[0], GRID, GRID)
        return features, {
            "classes": classes.reshape(*grid, self.num_classes),
            "confidences": confidences.reshape(*grid, PREDICTORS),
            "boxes": boxes.reshape(*grid, PREDICTORS, 4),
        }

    @nn.nowrap
    def class_outputs(self) -> dict[str, ClassOutputs]:
        """Lists the layer whose outputs have classes, see `ClassOutputs`."""
        classes = np.tile(np.arange(self.num_classes), GRID**2)
        rest = np.full(GRID**2 * 5 * PREDICTORS, -1)
        outputs = ClassOutputs(np.concatenate([classes, rest]), self.kernel_init)
        return {f"fc{len(self.hidden) + 1}": outputs}
