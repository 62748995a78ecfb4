"""Networks without branches, restated from their papers in plain torch.

They share no code with the zoo. `forward` takes images [B, C, H, W] and returns the
endpoints by name; the parameters have the names of the papers' layers.
"""

import torch
from torch import nn
from torch.nn import functional as F


def add_layers(network, layers):
    for name, layer in layers.items():
        network.add_module(name, layer)


def krizhevsky_norm(x):
    """Section 3.3 of the AlexNet paper: k = 2, n = 5, alpha = 1e-4, beta = 0.75.

    The sum is written out channel by channel.
    """
    channels = x.shape[1]
    squares = x**2
    energy = torch.zeros_like(x)
    for offset in range(-2, 3):
        low, high = max(0, -offset), min(channels, channels - offset)
        part = squares[:, low + offset : high + offset]
        energy = energy + F.pad(part, (0, 0, 0, 0, low, channels - high))
    return x / (2 + 1e-4 * energy) ** 0.75


class AlexNet(nn.Module):
    """Figure 2: each half of conv2, conv4 and conv5 sees the half of one GPU."""

    def __init__(self):
        super().__init__()
        add_layers(
            self,
            {
                "conv1": nn.Conv2d(3, 96, 11, stride=4),
                "conv2": nn.Conv2d(96, 256, 5, padding=2, groups=2),
                "conv3": nn.Conv2d(256, 384, 3, padding=1),
                "conv4": nn.Conv2d(384, 384, 3, padding=1, groups=2),
                "conv5": nn.Conv2d(384, 256, 3, padding=1, groups=2),
                "fc6": nn.Linear(256 * 6 * 6, 4096),
                "fc7": nn.Linear(4096, 4096),
                "fc8": nn.Linear(4096, 1000),
            },
        )

    def forward(self, images):
        out = {}
        out["conv1"] = F.relu(self.conv1(images))
        out["norm1"] = krizhevsky_norm(out["conv1"])
        out["pool1"] = F.max_pool2d(out["norm1"], 3, 2)
        out["conv2"] = F.relu(self.conv2(out["pool1"]))
        out["norm2"] = krizhevsky_norm(out["conv2"])
        out["pool2"] = F.max_pool2d(out["norm2"], 3, 2)
        out["conv3"] = F.relu(self.conv3(out["pool2"]))
        out["conv4"] = F.relu(self.conv4(out["conv3"]))
        out["conv5"] = F.relu(self.conv5(out["conv4"]))
        out["pool5"] = F.max_pool2d(out["conv5"], 3, 2)
        out["fc6"] = F.relu(self.fc6(out["pool5"].flatten(1)))
        out["fc7"] = F.relu(self.fc7(out["fc6"]))
        out["logits"] = self.fc8(out["fc7"])
        return out


class ZFNet(nn.Module):
    """Figure 3; the sizes 110, 55, 26, 13, 6 demand padding 1 and pools that round up.

    Its contrast normalization is not given: AlexNet's.
    """

    def __init__(self):
        super().__init__()
        add_layers(
            self,
            {
                "conv1": nn.Conv2d(3, 96, 7, stride=2, padding=1),
                "conv2": nn.Conv2d(96, 256, 5, stride=2),
                "conv3": nn.Conv2d(256, 384, 3, padding=1),
                "conv4": nn.Conv2d(384, 384, 3, padding=1),
                "conv5": nn.Conv2d(384, 256, 3, padding=1),
                "fc6": nn.Linear(256 * 6 * 6, 4096),
                "fc7": nn.Linear(4096, 4096),
                "fc8": nn.Linear(4096, 1000),
            },
        )

    def forward(self, images):
        def pool(x):
            return F.max_pool2d(x, 3, 2, ceil_mode=True)

        out = {}
        out["conv1"] = F.relu(self.conv1(images))
        out["pool1"] = pool(out["conv1"])
        out["norm1"] = krizhevsky_norm(out["pool1"])
        out["conv2"] = F.relu(self.conv2(out["norm1"]))
        out["pool2"] = pool(out["conv2"])
        out["norm2"] = krizhevsky_norm(out["pool2"])
        out["conv3"] = F.relu(self.conv3(out["norm2"]))
        out["conv4"] = F.relu(self.conv4(out["conv3"]))
        out["conv5"] = F.relu(self.conv5(out["conv4"]))
        out["pool5"] = pool(out["conv5"])
        for name, size in (("conv1", 110), ("pool1", 55), ("conv2", 26)):
            assert out[name].shape[-1] == size
        out["fc6"] = F.relu(self.fc6(out["pool5"].flatten(1)))
        out["fc7"] = F.relu(self.fc7(out["fc6"]))
        out["logits"] = self.fc8(out["fc7"])
        return out


class VGG(nn.Module):
    """Columns of table 1 that torchvision does not have.

    Args:
      column: Of each block, the convolutions as "3-64" (window, channels), and "lrn".
    """

    A_LRN = (
        "3-64 lrn",
        "3-128",
        "3-256 3-256",
        "3-512 3-512",
        "3-512 3-512",
    )
    C = (
        "3-64 3-64",
        "3-128 3-128",
        "3-256 3-256 1-256",
        "3-512 3-512 1-512",
        "3-512 3-512 1-512",
    )

    def __init__(self, column):
        super().__init__()
        self.column = [block.split() for block in column]
        channels = 3
        for i, block in enumerate(self.column, start=1):
            for j, entry in enumerate(e for e in block if e != "lrn"):
                window, width = map(int, entry.split("-"))
                padding = {3: 1, 1: 0}[window]
                layer = nn.Conv2d(channels, width, window, padding=padding)
                self.add_module(f"conv{i}_{j + 1}", layer)
                channels = width
        self.fc6 = nn.Linear(512 * 7 * 7, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, 1000)

    def forward(self, images):
        out, x = {}, images
        for i, block in enumerate(self.column, start=1):
            layer = 0
            for entry in block:
                if entry == "lrn":
                    x = out[f"norm{i}"] = krizhevsky_norm(x)
                    continue
                layer += 1
                name = f"conv{i}_{layer}"
                x = out[name] = F.relu(self.get_submodule(name)(x))
            x = out[f"pool{i}"] = F.max_pool2d(x, 2)
        x = out["fc6"] = F.relu(self.fc6(x.flatten(1)))
        x = out["fc7"] = F.relu(self.fc7(x))
        out["logits"] = self.fc8(x)
        return out


class PReLU(nn.Module):
    """Equation 1 of the initialization paper: max(0, y) + a min(0, y)."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))

    def forward(self, x):
        slope = self.weight.reshape(1, -1, *[1] * (x.ndim - 2))
        return x.clamp(min=0) + slope * x.clamp(max=0)


class Rectifiers(nn.Module):
    """Tables 1 and 3 of the initialization paper.

    Args:
      stages: Number and channels of the convolutions of each stage.
      small: The networks of table 1: conv1 without padding and with 64 channels, a 3x3
        pool, 2x2 convolutions that lengthen a side by one and shorten it by one in
        turn, and a pyramid of 6, 3, 2 and 1 bins. Else those of table 3.
      slopes: Whether the activations are PReLUs.
    """

    def __init__(self, stages, *, small, slopes):
        super().__init__()
        self.stages, self.small, self.slopes = stages, small, slopes
        self.bins = (6, 3, 2, 1) if small else (7, 3, 2, 1)
        width = 64 if small else 96
        self.add_unit("conv1", nn.Conv2d(3, width, 7, 2, 0 if small else 3), width)
        for i, (count, channels) in enumerate(stages, start=2):
            for j in range(1, count + 1):
                window, padding = (2, j % 2) if small else (3, 1)
                layer = nn.Conv2d(width, channels, window, padding=padding)
                self.add_unit(f"conv{i}_{j}", layer, channels)
                width = channels
        inputs = width * sum(n**2 for n in self.bins)
        self.add_unit("fc1", nn.Linear(inputs, 4096), 4096)
        self.add_unit("fc2", nn.Linear(4096, 4096), 4096)
        self.fc3 = nn.Linear(4096, 1000)

    def add_unit(self, name, layer, channels):
        self.add_module(name, layer)
        if self.slopes:
            self.add_module(f"{name}_prelu", PReLU(channels))

    def unit(self, name, x):
        x = self.get_submodule(name)(x)
        return self.get_submodule(f"{name}_prelu")(x) if self.slopes else F.relu(x)

    def forward(self, images):
        out = {}
        x = out["conv1"] = self.unit("conv1", images)
        x = out["pool1"] = F.max_pool2d(x, 3 if self.small else 2)
        assert x.shape[-1] == (36 if self.small else 56)
        last = len(self.stages) + 1
        for i, (count, _) in enumerate(self.stages, start=2):
            for j in range(1, count + 1):
                x = out[f"conv{i}_{j}"] = self.unit(f"conv{i}_{j}", x)
            if i < last:
                x = out[f"pool{i}"] = F.max_pool2d(x, 2)
        grids = [F.adaptive_max_pool2d(x, n).flatten(2) for n in self.bins]
        x = out["spp"] = torch.cat(grids, dim=2)  # [B, C, bins]
        x = out["fc1"] = self.unit("fc1", x.flatten(1))
        x = out["fc2"] = self.unit("fc2", x)
        out["logits"] = self.fc3(x)
        return out


class CaffeLeNet(nn.Module):
    """Caffe's MNIST example: no activation behind the convolutions."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.ip1 = nn.Linear(50 * 4 * 4, 500)
        self.ip2 = nn.Linear(500, 10)

    def forward(self, images):
        out = {}
        out["conv1"] = self.conv1(images)
        out["pool1"] = F.max_pool2d(out["conv1"], 2)
        out["conv2"] = self.conv2(out["pool1"])
        out["pool2"] = F.max_pool2d(out["conv2"], 2)
        out["ip1"] = F.relu(self.ip1(out["pool2"].flatten(1)))
        out["logits"] = self.ip2(out["ip1"])
        return out


NETWORKS = {
    "alexnet": AlexNet,
    "zfnet": ZFNet,
    "vgg11_lrn": lambda: VGG(VGG.A_LRN),
    "vgg16_c": lambda: VGG(VGG.C),
    "msra_small14": lambda: Rectifiers([(4, 128), (6, 256)], small=True, slopes=True),
    "relu30": lambda: Rectifiers([(4, 128), (22, 256)], small=True, slopes=False),
    "msra_a": lambda: Rectifiers(
        [(5, 256), (5, 512), (5, 512)], small=False, slopes=True
    ),
    "msra_b": lambda: Rectifiers(
        [(6, 256), (6, 512), (6, 512)], small=False, slopes=True
    ),
    "msra_c": lambda: Rectifiers(
        [(6, 384), (6, 768), (6, 896)], small=False, slopes=True
    ),
    "relu22": lambda: Rectifiers(
        [(6, 256), (6, 512), (6, 512)], small=False, slopes=False
    ),
    "lenet5_modern": CaffeLeNet,
}
