"""The PyTorch side of the benchmark: the same network, batches and augmentation.

It runs in a process of its own, which waits while the other side is measured. Its
names are those that `zoo.weights.to_torch` writes.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from benchmark_rounds import seconds_per_call
from torch import nn

# Memory format, and whether the network is compiled.
VARIANTS = {
    "torch_eager": (torch.contiguous_format, False),
    "torch_eager_channels_last": (torch.channels_last, False),
    "torch_compile": (torch.channels_last, True),
}
PADDING = 4


class Block(nn.Module):
    """Two 3x3 convolutions and the paper's parameter-free shortcut, option A."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.extra:
            half = self.extra // 2
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, half, self.extra - half))
        return F.relu(y + x)


class ResNet(nn.Module):
    """The CIFAR network of 6n + 2 layers."""

    def __init__(self, blocks: int, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for i, (inputs, outputs) in enumerate([(16, 16), (16, 32), (32, 64)], start=1):
            first = Block(inputs, outputs, min(i, 2))
            rest = [Block(outputs, outputs, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{i}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(64, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def augment(images: torch.Tensor) -> torch.Tensor:
    """Pads, crops and mirrors uint8 [B, H, W, C] with one gather for the batch."""
    count, size = images.shape[:2]
    padded = F.pad(images, (0, 0, *[PADDING] * 4))
    top, left = torch.randint(0, 2 * PADDING + 1, (2, count, 1))
    rows = columns = torch.arange(size)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns.flip(0), columns)
    batch = torch.arange(count)[:, None, None]
    return padded[batch, (top + rows)[:, :, None], (left + columns)[:, None]]


class Side:
    """Everything the PyTorch process keeps between its turns."""

    def __init__(
        self,
        weights: Mapping[str, np.ndarray],
        images: np.ndarray,
        labels: np.ndarray,
        facts: Mapping[str, Any],
    ):
        torch.set_num_threads(facts["threads"])
        torch.manual_seed(0)
        self.facts, self.version = facts, torch.__version__
        self.weights = {k: torch.from_numpy(v) for k, v in weights.items()}
        self.images = torch.from_numpy(images)
        self.labels = torch.from_numpy(labels).long()
        self.mean = torch.tensor(facts["mean"])
        self.std = torch.tensor(facts["std"])
        self.trained = {}

    def parameters(self) -> int:
        """Counts the trained parameters."""
        return sum(p.numel() for p in self.create("torch_eager").parameters())

    def create(self, variant: str) -> nn.Module:
        """Creates the network with the weights that both sides start from."""
        layout, compiled = VARIANTS[variant]
        model = ResNet(self.facts["blocks"])
        missing, unexpected = model.load_state_dict(self.weights, strict=False)
        counters = [k for k in missing if not k.endswith("num_batches_tracked")]
        if counters or unexpected:
            raise ValueError(f"missing {counters}, unexpected {unexpected}.")
        model = model.to(memory_format=layout)
        return torch.compile(model) if compiled else model

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Makes the paper's: SGD with momentum, and decay of every parameter."""
        names = ("lr", "momentum", "weight_decay")
        options = {name: self.facts[name] for name in names}
        return torch.optim.SGD(model.parameters(), fused=True, **options)

    def prepare(self, images: torch.Tensor, variant: str) -> torch.Tensor:
        """From uint8 [B, H, W, C] to the network's input [B, C, H, W]."""
        images = (images.float() / 255 - self.mean) / self.std
        layout, _ = VARIANTS[variant]
        return images.permute(0, 3, 1, 2).contiguous(memory_format=layout)

    def step(self, model, optimizer, inputs, labels) -> torch.Tensor:
        """Updates the network once and returns the loss before."""
        loss = F.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    def losses(self, indices: np.ndarray, steps: int) -> list[float]:
        """Trains on one batch without augmentation; returns the loss of each step."""
        model = self.create("torch_eager").train()
        optimizer, indices = self.optimizer(model), torch.from_numpy(indices)
        inputs = self.prepare(self.images[indices], "torch_eager")
        labels = self.labels[indices]
        steps = (self.step(model, optimizer, inputs, labels) for _ in range(steps))
        return [loss.item() for loss in steps]

    def train(self, variant: str, orders: np.ndarray) -> float:
        """Trains on the batches of `orders` [steps, B]; returns seconds per step."""
        warm = () if variant in self.trained else (1, 2)
        if warm:
            model = self.create(variant).train()
            self.trained[variant] = model, self.optimizer(model)
        model, optimizer = self.trained[variant]

        def run(indices):
            inputs = self.prepare(augment(self.images[indices]), variant)
            self.step(model, optimizer, inputs, self.labels[indices])

        orders = [torch.from_numpy(order) for order in orders]
        for _ in warm:
            run(orders[0])
        started = time.perf_counter()
        for order in orders:
            run(order)
        return (time.perf_counter() - started) / len(orders)

    def infer(self, variant: str, batch: int, calls: int) -> float:
        """Classifies one batch again and again; returns seconds per call."""
        model, images = self.create(variant).eval(), self.images[:batch]
        with torch.inference_mode():
            return seconds_per_call(lambda: model(self.prepare(images, variant)), calls)
