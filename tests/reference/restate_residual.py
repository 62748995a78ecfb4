"""Residual and plain networks, restated from the two papers in plain torch.

References:
  He, Zhang, Ren, Sun, Deep Residual Learning for Image Recognition, 2015, table 1,
  figures 3 and 5, section 4.2 (v1 and CIFAR-10). The same, Identity Mappings in Deep
  Residual Networks, 2016, figure 4e and appendix (v2).
"""

from torch import nn
from torch.nn import functional as F


def conv(inputs, outputs, window, stride=1):
    return nn.Conv2d(
        inputs, outputs, window, stride, padding=(window - 1) // 2, bias=False
    )


class Basic(nn.Module):
    """Figure 5, left; `option` is "A" (zeros), "B" (projection) or None (plain)."""

    def __init__(self, inputs, width, stride, option):
        super().__init__()
        self.stride, self.option = stride, option
        self.conv1, self.bn1 = conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)

    def shortcut(self, x, channels):
        if x.shape[1] == channels:
            return x
        # Option A: every second pixel, and zeros on both sides of its channels.
        side = (channels - x.shape[1]) // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, side, side))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x, y.shape[1]) if self.option else y)


class Bottleneck(nn.Module):
    """Figure 5, right, as published: the first 1x1 convolution has the stride."""

    def __init__(self, inputs, width, stride, option):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, width, 1, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.downsample = None
        if inputs != 4 * width:
            projection = conv(inputs, 4 * width, 1, stride)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(4 * width))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Residual(nn.Module):
    """Table 1 for ImageNet, or section 4.2 for CIFAR-10."""

    def __init__(self, block, blocks, *, option="B", small=False):
        super().__init__()
        self.small, width = small, 16 if small else 64
        self.conv1 = conv(3, width, 3) if small else conv(3, width, 7, 2)
        self.bn1 = nn.BatchNorm2d(width)
        expansion = 4 if block is Bottleneck else 1
        inputs = width
        for i, count in enumerate(blocks):
            layer = nn.Sequential()
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                layer.append(block(inputs, width * 2**i, stride, option))
                inputs = expansion * width * 2**i
            self.add_module(f"layer{i + 1}", layer)
        self.stages = len(blocks)
        self.add_module(
            "linear" if small else "fc", nn.Linear(inputs, 10 if small else 1000)
        )

    def forward(self, images):
        out = {}
        x = out["stem"] = F.relu(self.bn1(self.conv1(images)))
        if not self.small:
            x = out["stem_pool"] = F.max_pool2d(x, 3, 2, padding=1)
        for i in range(1, self.stages + 1):
            x = out[f"stage{i}"] = self.get_submodule(f"layer{i}")(x)
        x = out["pool"] = x.flatten(2).mean(2)
        out["logits"] = (self.linear if self.small else self.fc)(x)
        return out


class PreActivation(nn.Module):
    """Figure 4e in a bottleneck.

    The network's first block has its activation before the two paths part, which its
    stem's norm and ReLU are; so has every block whose shape changes, with its own.
    """

    def __init__(self, inputs, width, stride, *, first, stride_in_3x3):
        super().__init__()
        outputs = 4 * width
        strides = (1, stride) if stride_in_3x3 else (stride, 1)
        if not first:
            self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, width, 1, strides[0])
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, strides[1])
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, outputs, 1)
        self.first = first
        self.changes = inputs != outputs
        if self.changes:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride))

    def forward(self, x):
        active = x if self.first else F.relu(self.bn1(x))
        y = self.conv1(active)
        y = self.conv2(F.relu(self.bn2(y)))
        y = self.conv3(F.relu(self.bn3(y)))
        return y + (self.downsample(active) if self.changes else x)


class ResidualV2(nn.Module):
    """ResNet-200 for ImageNet, or the 9n + 2 layers for CIFAR-10."""

    def __init__(self, blocks, *, small):
        super().__init__()
        self.small, width = small, 16 if small else 64
        self.conv1 = conv(3, width, 3) if small else conv(3, width, 7, 2)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for i, count in enumerate(blocks):
            layer = nn.Sequential()
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                facts = dict(first=i == j == 0, stride_in_3x3=not small)
                layer.append(PreActivation(inputs, width * 2**i, stride, **facts))
                inputs = 4 * width * 2**i
            self.add_module(f"layer{i + 1}", layer)
        self.stages = len(blocks)
        self.bn_final = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, 10 if small else 1000)

    def forward(self, images):
        out = {}
        x = out["stem"] = F.relu(self.bn1(self.conv1(images)))
        if not self.small:
            x = out["stem_pool"] = F.max_pool2d(x, 3, 2, padding=1)
        for i in range(1, self.stages + 1):
            x = out[f"stage{i}"] = self.get_submodule(f"layer{i}")(x)
        x = out["final"] = F.relu(self.bn_final(x))
        x = out["pool"] = x.flatten(2).mean(2)
        out["logits"] = self.fc(x)
        return out


NETWORKS = {
    "resnet50_v1": lambda: Residual(Bottleneck, (3, 4, 6, 3)),
    "resnet101_v1": lambda: Residual(Bottleneck, (3, 4, 23, 3)),
    "resnet152_v1": lambda: Residual(Bottleneck, (3, 8, 36, 3)),
    "plain18": lambda: Residual(Basic, (2, 2, 2, 2), option=None),
    "plain34": lambda: Residual(Basic, (3, 4, 6, 3), option=None),
    "resnet200_v2": lambda: ResidualV2((3, 24, 36, 3), small=False),
    "cifar_resnet164_v2": lambda: ResidualV2((18, 18, 18), small=True),
    "cifar_resnet1001_v2": lambda: ResidualV2((111, 111, 111), small=True),
    "cifar_resnet20": lambda: Residual(Basic, (3, 3, 3), option="A", small=True),
    "cifar_resnet110": lambda: Residual(Basic, (18, 18, 18), option="A", small=True),
    "cifar_plain20": lambda: Residual(Basic, (3, 3, 3), option=None, small=True),
}
