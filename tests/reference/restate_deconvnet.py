"""Deconvnet, guided backprop and the gradient, layer by layer in plain torch.

It shares no code with the zoo, and differentiates nothing by itself: each layer's way
back is written out. A network is a list of `(endpoint, operations)`.
"""

import torch
from torch.nn import functional as F

METHODS = ("saliency", "deconvnet", "guided_backprop")


def conv(name, stride=1, padding=0, groups=1):
    return ("conv", name, dict(stride=stride, padding=padding, groups=groups))


def pool(window, stride, ceil=False):
    return ("pool", window, stride, ceil)


def dense(name):
    return ("dense", name)


RELU, NORM, FLATTEN = ("relu",), ("norm",), ("flatten",)

ALEXNET = [
    ("conv1", [conv("conv1", stride=4), RELU]),
    ("norm1", [NORM]),
    ("pool1", [pool(3, 2)]),
    ("conv2", [conv("conv2", padding=2, groups=2), RELU]),
    ("norm2", [NORM]),
    ("pool2", [pool(3, 2)]),
    ("conv3", [conv("conv3", padding=1), RELU]),
    ("conv4", [conv("conv4", padding=1, groups=2), RELU]),
    ("conv5", [conv("conv5", padding=1, groups=2), RELU]),
    ("pool5", [pool(3, 2)]),
    ("fc6", [FLATTEN, dense("fc6"), RELU]),
    ("fc7", [dense("fc7"), RELU]),
    ("logits", [dense("fc8")]),
]
ZFNET = [
    ("conv1", [conv("conv1", stride=2, padding=1), RELU]),
    ("pool1", [pool(3, 2, ceil=True)]),
    ("norm1", [NORM]),
    ("conv2", [conv("conv2", stride=2), RELU]),
    ("pool2", [pool(3, 2, ceil=True)]),
    ("norm2", [NORM]),
    ("conv3", [conv("conv3", padding=1), RELU]),
    ("conv4", [conv("conv4", padding=1), RELU]),
    ("conv5", [conv("conv5", padding=1), RELU]),
    ("pool5", [pool(3, 2, ceil=True)]),
    ("fc6", [FLATTEN, dense("fc6"), RELU]),
    ("fc7", [dense("fc7"), RELU]),
    ("logits", [dense("fc8")]),
]


def make_vgg16(names):
    """By the keys of the weights: those of torchvision."""
    layers, numbers = [], iter(names)
    for stage, depth in enumerate((2, 2, 3, 3, 3), start=1):
        for i in range(1, depth + 1):
            layers.append((f"conv{stage}_{i}", [conv(next(numbers), padding=1), RELU]))
        layers.append((f"pool{stage}", [pool(2, 2)]))
    layers.append(("fc6", [FLATTEN, dense(next(numbers)), RELU]))
    layers.append(("fc7", [dense(next(numbers)), RELU]))
    return [*layers, ("logits", [dense(next(numbers))])]


class Restated:
    """A network of layers, run once on some images.

    Attributes:
      layers: The list.
      weights: Tensors by name, such as "conv1.weight".
      outputs: By endpoint, [B, C, H, W] or [B, C].
    """

    def __init__(self, layers, weights, images):
        self.layers, self.weights = layers, weights
        self.inputs, self.outputs = {}, {}
        x = images
        for endpoint, operations in layers:
            for i, operation in enumerate(operations):
                self.inputs[endpoint, i] = x
                x = self.forward(operation, x)
            self.outputs[endpoint] = x

    def forward(self, operation, x):
        kind, *options = operation
        if kind == "conv":
            name, how = options
            weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
            return F.conv2d(x, weight, bias, **how)
        if kind == "dense":
            (name,) = options
            weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
            return x @ weight.T + bias
        if kind == "relu":
            return x * (x > 0)
        if kind == "norm":
            return x * energy(x) ** -0.75
        if kind == "pool":
            window, stride, ceil = options
            return F.max_pool2d(x, window, stride, ceil_mode=ceil)
        return x.flatten(1)

    def project(self, endpoint, method):
        """Projects the strongest activation of each image; returns [B, C, H, W]."""
        y = self.outputs[endpoint]
        flat = y.flatten(1)
        channels = y.flatten(2) if y.ndim == 4 else y[..., None]
        channel = channels.amax(2).argmax(1)
        rows = torch.arange(len(y))
        place = channels[rows, channel].argmax(1)
        where = channel * channels.shape[2] + place
        value = flat[rows, where] if method == "deconvnet" else 1.0
        g = torch.zeros_like(flat)
        g[rows, where] = value
        g = g.reshape(y.shape)
        names = [name for name, _ in self.layers]
        for name, operations in reversed(self.layers[: names.index(endpoint) + 1]):
            for i in reversed(range(len(operations))):
                g = self.back(operations[i], self.inputs[name, i], g, method)
        return g

    def back(self, operation, x, g, method):
        kind, *options = operation
        if kind == "conv":
            name, how = options
            weight = self.weights[f"{name}.weight"]
            whole = F.conv_transpose2d(g, weight, **how)
            # Rows and columns that no window of a strided convolution has read.
            rest = [n - m for n, m in zip(x.shape[2:], whole.shape[2:], strict=True)]
            return F.conv_transpose2d(g, weight, output_padding=rest, **how)
        if kind == "dense":
            return g @ self.weights[f"{options[0]}.weight"]
        if kind == "relu":
            if method != "saliency":
                g = g.clamp(min=0)
            return g if method == "deconvnet" else g * (x > 0)
        if kind == "norm":
            return g if method == "deconvnet" else norm_gradient(x, g)
        if kind == "pool":
            return unpool(x, g, *options)
        return g.reshape(x.shape)


def unpool(x, g, window, stride, ceil):
    """Puts each value to its switch; adds them where windows overlap."""
    _, switches = F.max_pool2d(x, window, stride, ceil_mode=ceil, return_indices=True)
    if window == stride:
        return F.max_unpool2d(g, switches, window, stride, output_size=x.shape)
    flat = torch.zeros_like(x).flatten(2)
    flat.scatter_add_(2, switches.flatten(2), g.flatten(2))
    return flat.reshape(x.shape)


def energy(x):
    """2 + 1e-4 * the sum of squares over five channels, see AlexNet's section 3.3."""
    return 2 + 1e-4 * over_channels(x**2)


def over_channels(x):
    padded = F.pad(x, (0, 0, 0, 0, 2, 2))
    return sum(padded[:, i : i + x.shape[1]] for i in range(5))


def norm_gradient(x, g):
    """Of x * energy ** -0.75: directly, and through the energy of its neighbors."""
    e = energy(x)
    through = over_channels(g * x * -0.75 * e**-1.75)
    return g * e**-0.75 + through * 2e-4 * x
