"""FCN on VGG-16 and PSPNet, restated in plain torch.

They share no code with the zoo. `forward` takes images [B, C, H, W] and returns the
endpoints by name. The parameters have the names of the released files.

References:
  Long, Shelhamer, Darrell, Fully Convolutional Networks for Semantic Segmentation,
  2015, figure 3, and the networks released with it. Zhao et al., Pyramid Scene Parsing
  Network, 2017, figure 3, and the networks released with it.
"""

import torch
from torch import nn
from torch.nn import functional as F


def bilinear_kernel(size, channels):
    """Pixel (i, j) of the kernel of each channel, written out as Caffe's filler is."""
    factor = (size + 1) // 2
    center = factor - 1 if size % 2 == 1 else factor - 0.5
    kernel = torch.zeros(channels, channels, size, size, dtype=torch.float64)
    for i in range(size):
        for j in range(size):
            value = (1 - abs(i - center) / factor) * (1 - abs(j - center) / factor)
            for c in range(channels):
                kernel[c, c, i, j] = value
    return kernel


def cut(x, offset, height, width):
    """Caffe's Crop layer: the reference's size, from the offset on."""
    y = x[:, :, offset : offset + height, offset : offset + width]
    assert y.shape[2:] == (height, width)
    return y


class FCN(nn.Module):
    """Figure 3: `stride` is 32, 16 or 8.

    As in the paper the last upsampling is fixed and the others are learnt.
    """

    BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))

    def __init__(self, stride, classes=21):
        super().__init__()
        self.stride, inputs = stride, 3
        for i, (count, width) in enumerate(self.BLOCKS, start=1):
            for j in range(1, count + 1):
                padding = 100 if i == j == 1 else 1
                layer = nn.Conv2d(inputs, width, 3, padding=padding)
                self.add_module(f"conv{i}_{j}", layer)
                inputs = width
        self.fc6 = nn.Linear(512 * 7 * 7, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.score_fr = nn.Conv2d(4096, classes, 1)
        if stride <= 16:
            self.upscore2 = nn.ConvTranspose2d(classes, classes, 4, 2, bias=False)
            self.score_pool4 = nn.Conv2d(512, classes, 1)
        if stride == 8:
            self.upscore_pool4 = nn.ConvTranspose2d(classes, classes, 4, 2, bias=False)
            self.score_pool3 = nn.Conv2d(256, classes, 1)
        self.register_buffer(
            "fixed", bilinear_kernel(2 * stride, classes), persistent=False
        )

    def forward(self, images):
        out, x = {}, images
        height, width = images.shape[2:]
        for i, (count, _) in enumerate(self.BLOCKS, start=1):
            for j in range(1, count + 1):
                name = f"conv{i}_{j}"
                x = out[name] = F.relu(self.get_submodule(name)(x))
            x = out[f"pool{i}"] = F.max_pool2d(x, 2, ceil_mode=True)
        window = self.fc6.weight.reshape(4096, 512, 7, 7)
        x = out["fc6"] = F.relu(F.conv2d(x, window, self.fc6.bias))
        window = self.fc7.weight.reshape(4096, 4096, 1, 1)
        x = out["fc7"] = F.relu(F.conv2d(x, window, self.fc7.bias))
        x = out["score_fr"] = self.score_fr(x)
        if self.stride <= 16:
            x = out["upscore2"] = self.upscore2(x)
            skip = out["score_pool4"] = self.score_pool4(out["pool4"])
            x = out["fuse_pool4"] = x + cut(skip, 5, *x.shape[2:])
        if self.stride == 8:
            x = out["upscore_pool4"] = self.upscore_pool4(x)
            skip = out["score_pool3"] = self.score_pool3(out["pool3"])
            x = out["fuse_pool3"] = x + cut(skip, 9, *x.shape[2:])
        x = F.conv_transpose2d(x, self.fixed, stride=self.stride)
        out["logits"] = cut(x, {32: 19, 16: 27, 8: 31}[self.stride], height, width)
        return out


def conv(inputs, outputs, window, stride=1, dilation=1):
    padding = dilation * (window // 2)
    return nn.Conv2d(inputs, outputs, window, stride, padding, dilation, bias=False)


def norm(channels):
    # Caffe's moving averages keep 0.95.
    return nn.BatchNorm2d(channels, momentum=0.05)


class Bottleneck(nn.Module):
    """As released for Caffe: the first 1x1 convolution has the stride."""

    def __init__(self, inputs, width, stride, dilation):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, width, 1, stride), norm(width)
        self.conv2 = conv(width, width, 3, dilation=dilation)
        self.bn2 = norm(width)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), norm(4 * width)
        self.downsample = None
        if inputs != 4 * width:
            projection = conv(inputs, 4 * width, 1, stride)
            self.downsample = nn.Sequential(projection, norm(4 * width))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Pyramid(nn.Module):
    """Means over 1, 4, 9 and 36 bins, each reduced and brought back to the map."""

    def __init__(self):
        super().__init__()
        self.features = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(n), conv(2048, 512, 1), norm(512))
            for n in (1, 2, 3, 6)
        )

    def forward(self, x):
        parts = [x]
        for level in self.features:
            y = F.relu(level(x))
            size = x.shape[2:]
            y = F.interpolate(y, size, mode="bilinear", align_corners=True)
            parts.append(y)
        return torch.cat(parts, dim=1)


class PSPNet(nn.Module):
    """Figure 3, with the auxiliary head behind res4b22 or res4b5."""

    def __init__(self, blocks, classes=19):
        super().__init__()
        self.layer0 = nn.Sequential(
            *(conv(3, 64, 3, 2), norm(64), nn.ReLU()),
            *(conv(64, 64, 3), norm(64), nn.ReLU()),
            *(conv(64, 128, 3), norm(128), nn.ReLU()),
        )
        inputs, strides, dilations = 128, (1, 2, 1, 1), (1, 1, 2, 4)
        for i, count in enumerate(blocks):
            layer, width = nn.Sequential(), 64 * 2**i
            for j in range(count):
                stride = strides[i] if j == 0 else 1
                layer.append(Bottleneck(inputs, width, stride, dilations[i]))
                inputs = 4 * width
            self.add_module(f"layer{i + 1}", layer)
        self.ppm = Pyramid()
        self.cls = self.make_head(4096, 512, classes)
        self.aux = self.make_head(1024, 256, classes)

    @staticmethod
    def make_head(inputs, width, classes):
        # Dropout stands at place 3, and is not active here.
        last = nn.Conv2d(width, classes, 1)
        return nn.Sequential(
            conv(inputs, width, 3), norm(width), nn.ReLU(), nn.Identity(), last
        )

    def forward(self, images):
        out, size = {}, images.shape[2:]
        out["stem"] = self.layer0(images)
        x = out["stem_pool"] = F.max_pool2d(out["stem"], 3, 2, padding=1)
        for i in (1, 2, 3, 4):
            x = out[f"stage{i}"] = self.get_submodule(f"layer{i}")(x)
        x = out["pyramid"] = self.ppm(x)
        x = out["head_conv"] = self.cls[:3](x)
        x = out["score"] = self.cls[4](x)
        logits = F.interpolate(x, size, mode="bilinear", align_corners=True)
        x = self.aux(out["stage3"])
        out["aux"] = F.interpolate(x, size, mode="bilinear", align_corners=True)
        out["logits"] = logits
        return out


NETWORKS = {
    "fcn32s_vgg16": lambda: FCN(32),
    "fcn16s_vgg16": lambda: FCN(16),
    "fcn8s_vgg16": lambda: FCN(8),
    "pspnet_resnet50": lambda: PSPNet((3, 4, 6, 3)),
    "pspnet_resnet101": lambda: PSPNet((3, 4, 23, 3)),
}
