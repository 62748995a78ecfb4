"""U-Net, SegNet and full-resolution residual networks, restated in plain torch.

They share no code with the zoo. `forward` takes images [B, C, H, W] and returns the
endpoints by name. U-Net's parameters have the names of milesial's Pytorch-UNet,
SegNet's those of the released files.

References:
  Ronneberger, Fischer, Brox, U-Net, 2015, figure 1. Badrinarayanan, Kendall, Cipolla,
  SegNet, 2015, section 3, and the networks released with it. Pohlen et al.,
  Full-Resolution Residual Networks, 2017, table 1 and figure 2, and its released code.
"""

import torch
from restate_residual import Basic, Residual
from restate_unet_small import Holder, UNetSmall
from torch import nn
from torch.nn import functional as F


def double_conv(inputs, outputs, *, same):
    """Two convolutions with ReLUs; where they keep the size, with batch norm."""
    layers = []
    for channels in (inputs, outputs):
        options = dict(padding=int(same), bias=not same)
        layers.append(nn.Conv2d(channels, outputs, 3, **options))
        layers += [nn.BatchNorm2d(outputs)] if same else []
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Figure 1; with `same`, the form that keeps the image's size."""

    def __init__(self, widths, *, channels, classes, same):
        super().__init__()
        self.levels = len(widths)
        first = double_conv(channels, widths[0], same=same)
        self.inc = Holder(double_conv=first)
        for i in range(1, self.levels):
            pair = double_conv(widths[i - 1], widths[i], same=same)
            pool = nn.Sequential(nn.MaxPool2d(2), Holder(double_conv=pair))
            self.add_module(f"down{i}", Holder(maxpool_conv=pool))
            # The i-th step up ends at the level `levels - i`, from 1 at the top.
            upper, lower = widths[-1 - i], widths[-i]
            pair = Holder(double_conv=double_conv(2 * upper, upper, same=same))
            up = nn.ConvTranspose2d(lower, upper, 2, stride=2)
            self.add_module(f"up{i}", Holder(up=up, conv=pair))
        self.outc = Holder(conv=nn.Conv2d(widths[0], classes, 1))

    def forward(self, images):
        out = {}
        x = out["down1"] = self.inc.double_conv(images)
        for i in range(1, self.levels):
            pool, pair = self.get_submodule(f"down{i}.maxpool_conv")
            x = out[f"pool{i}"] = pool(x)
            x = out[f"down{i + 1}"] = pair.double_conv(x)
        for i in range(1, self.levels):
            level = self.levels - i
            step, skip = self.get_submodule(f"up{i}"), out[f"down{level}"]
            x = step.up(x)
            if skip.shape[2] >= x.shape[2] + 8:
                # Without padding: as much is cut off on the left as on the right.
                rows, columns = (skip.shape[k] - x.shape[k] for k in (2, 3))
                assert rows % 2 == columns % 2 == 0
                skip = skip[:, :, rows // 2 : -(rows // 2)]
                skip = skip[..., columns // 2 : -(columns // 2)]
            else:
                # After a pool of an odd number, zeros below and on the right.
                rows, columns = (skip.shape[k] - x.shape[k] for k in (2, 3))
                x = F.pad(x, (0, columns, 0, rows))
            x = torch.cat([skip, x], dim=1)
            x = out[f"up{level}"] = step.conv.double_conv(x)
        out["logits"] = self.outc.conv(x)
        return out


class UNetResNet34(nn.Module):
    """The expanding path behind a ResNet-34, with maps doubled by repetition."""

    WIDTHS = (256, 128, 64, 32, 16)

    def __init__(self, classes=21):
        super().__init__()
        self.encoder = Residual(Basic, (3, 4, 6, 3))
        for layer in ("layer2", "layer3", "layer4"):
            # Option B, of which `Basic` has none.
            first = self.encoder.get_submodule(layer)[0]
            inputs, width = first.conv1.in_channels, first.conv1.out_channels
            first.downsample = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride=2, bias=False),
                nn.BatchNorm2d(width),
            )
            first.shortcut = lambda x, _, project=first.downsample: project(x)
        del self.encoder.fc
        inputs, skips = 512, (256, 128, 64, 64, 0)
        for n, (width, skip) in enumerate(zip(self.WIDTHS, skips, strict=True)):
            step = Holder(
                conv1=nn.Conv2d(inputs + skip, width, 3, padding=1, bias=False),
                bn1=nn.BatchNorm2d(width),
                conv2=nn.Conv2d(width, width, 3, padding=1, bias=False),
                bn2=nn.BatchNorm2d(width),
            )
            self.add_module(f"up{5 - n}", step)
            inputs = width
        self.score = nn.Conv2d(inputs, classes, 3, padding=1)

    def forward(self, images):
        out, net = {}, self.encoder
        x = out["stem"] = F.relu(net.bn1(net.conv1(images)))
        x = out["stem_pool"] = F.max_pool2d(x, 3, 2, padding=1)
        for i in (1, 2, 3, 4):
            x = out[f"stage{i}"] = net.get_submodule(f"layer{i}")(x)
        for i, name in ((5, "stage3"), (4, "stage2"), (3, "stage1"), (2, "stem")):
            x = self.step(i, x, out[name].shape[2:], out[name])
            out[f"up{i}"] = x
        x = out["up1"] = self.step(1, x, images.shape[2:], None)
        out["logits"] = self.score(x)
        return out

    def step(self, i, x, size, skip):
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = x[:, :, : size[0], : size[1]]
        if skip is not None:
            x = torch.cat([skip, x], dim=1)
        layers = self.get_submodule(f"up{i}")
        x = F.relu(layers.bn1(layers.conv1(x)))
        return F.relu(layers.bn2(layers.conv2(x)))


STAGES = {
    1: (64, 64),
    2: (128, 128),
    3: (256, 256, 256),
    4: (512, 512, 512),
    5: (512, 512, 512),
}


class SegNet(nn.Module):
    """The released network's layers, in its order; their names say which they are."""

    def __init__(self, classes=11):
        super().__init__()
        inputs = 3
        for stage, widths in STAGES.items():
            for j, width in enumerate(widths, start=1):
                self.add_layer(f"conv{stage}_{j}", inputs, width)
                inputs = width
        for stage in (5, 4, 3, 2, 1):
            widths = STAGES[stage]
            for j in range(len(widths), 0, -1):
                # The stage's last layer has the channels of the stage below.
                width = widths[0] if j > 1 or stage == 1 else STAGES[stage - 1][0]
                if (stage, j) == (1, 1):
                    self.conv1_1_D = nn.Conv2d(inputs, classes, 3, padding=1)
                else:
                    self.add_layer(f"conv{stage}_{j}_D", inputs, width)
                inputs = width

    def add_layer(self, name, inputs, outputs):
        self.add_module(name, nn.Conv2d(inputs, outputs, 3, padding=1))
        self.add_module(f"{name}_bn", nn.BatchNorm2d(outputs))

    def layer(self, name, x):
        return F.relu(self.get_submodule(f"{name}_bn")(self.get_submodule(name)(x)))

    def forward(self, images):
        out, x, masks, sizes = {}, images, {}, {}
        for stage, widths in STAGES.items():
            for j in range(1, len(widths) + 1):
                x = out[f"conv{stage}_{j}"] = self.layer(f"conv{stage}_{j}", x)
            sizes[stage] = x.shape[2:]
            x, masks[stage] = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
            out[f"pool{stage}"], out[f"pool{stage}_mask"] = x, masks[stage]
        for stage in (5, 4, 3, 2, 1):
            x = F.max_unpool2d(x, masks[stage], 2, output_size=sizes[stage])
            out[f"pool{stage}_D"] = x
            for j in range(len(STAGES[stage]), 0, -1):
                name = f"conv{stage}_{j}_D"
                if name == "conv1_1_D":
                    out["logits"] = self.conv1_1_D(x)
                else:
                    x = out[name] = self.layer(name, x)
        return out


class SegNetBasic(nn.Module):
    """Four layers there and four back, and no ReLU on the way back."""

    def __init__(self, classes=11):
        super().__init__()
        for name in ("conv{}", "conv_decode{}"):
            for i in (1, 2, 3, 4):
                inputs = 3 if (name, i) == ("conv{}", 1) else 64
                layer = nn.Conv2d(inputs, 64, 7, padding=3)
                self.add_module(name.format(i), layer)
                self.add_module(f"{name.format(i)}_bn", nn.BatchNorm2d(64))
        self.conv_classifier = nn.Conv2d(64, classes, 1)

    def forward(self, images):
        out, masks, sizes = {}, {}, {}
        x = out["norm"] = F.local_response_norm(images, 5, alpha=1e-4, beta=0.75, k=1)
        for i in (1, 2, 3, 4):
            x = self.get_submodule(f"conv{i}_bn")(self.get_submodule(f"conv{i}")(x))
            x = out[f"conv{i}"] = F.relu(x)
            sizes[i] = x.shape[2:]
            x, masks[i] = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
            out[f"pool{i}"], out[f"pool{i}_mask"] = x, masks[i]
        for i in (4, 3, 2, 1):
            x = F.max_unpool2d(x, masks[i], 2, output_size=sizes[i])
            out[f"pool{i}_D"] = x
            name = f"conv_decode{i}"
            x = self.get_submodule(name)(x)
            x = out[name] = self.get_submodule(f"{name}_bn")(x)
        out["logits"] = self.conv_classifier(x)
        return out


class ResidualUnit(nn.Module):
    """Figure 2a; a first one behind both streams has a projection."""

    def __init__(self, inputs, width):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps=1e-4)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps=1e-4)
        if inputs != width:
            self.shortcut = nn.Conv2d(inputs, width, 1, bias=False)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return y + (self.shortcut(x) if hasattr(self, "shortcut") else x)


class FullResolutionUnit(nn.Module):
    """Figure 2b."""

    def __init__(self, inputs, width, lanes, scale):
        super().__init__()
        self.scale = scale
        self.conv1 = nn.Conv2d(inputs + lanes, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps=1e-4)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, eps=1e-4)
        self.residual = nn.Conv2d(width, lanes, 1)

    def forward(self, y, z):
        pooled = F.max_pool2d(z, self.scale, self.scale)
        y = torch.cat([y, pooled], dim=1)
        y = F.relu(self.bn1(self.conv1(y)))
        y = F.relu(self.bn2(self.conv2(y)))
        add = F.interpolate(self.residual(y), scale_factor=self.scale, mode="nearest")
        return y, z + add


class FRRN(nn.Module):
    """Table 1. A row: scale, units, channels; the way up begins at the lowest scale."""

    A = ((2, 3, 96), (4, 4, 192), (8, 2, 384), (16, 2, 384))
    A_UP = ((8, 2, 192), (4, 2, 192), (2, 2, 96))
    B = (*A, (32, 2, 384))
    B_UP = ((16, 2, 192), *A_UP)

    def __init__(self, down, up, classes=19):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 48, 5, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(48, eps=1e-4)
        for i in (1, 2, 3):
            self.add_module(f"ru{i}", ResidualUnit(48, 48))
        self.split_conv = nn.Conv2d(48, 32, 1, bias=False)
        self.split_bn = nn.BatchNorm2d(32, eps=1e-4)
        self.rows, inputs = [], 48
        for way, rows in (("down", down), ("up", up)):
            for scale, count, width in rows:
                names = [f"{way}{scale}_frru{i + 1}" for i in range(count)]
                self.rows.append((way, names))
                for name in names:
                    unit = FullResolutionUnit(inputs, width, 32, scale)
                    self.add_module(name, unit)
                    inputs = width
        for i in (4, 5, 6):
            self.add_module(f"ru{i}", ResidualUnit(inputs + 32 if i == 4 else 48, 48))
        self.score = nn.Conv2d(48, classes, 1)

    def forward(self, images):
        out = {}
        x = out["conv1"] = F.relu(self.bn1(self.conv1(images)))
        for i in (1, 2, 3):
            x = out[f"ru{i}"] = self.get_submodule(f"ru{i}")(x)
        z = out["split"] = self.split_bn(self.split_conv(x))
        for way, names in self.rows:
            x = F.max_pool2d(x, 2) if way == "down" else self.double(x)
            for name in names:
                x, z = self.get_submodule(name)(x, z)
                out[name], out[f"{name}_z"] = x, z
        x = torch.cat([self.double(x), z], dim=1)
        for i in (4, 5, 6):
            x = out[f"ru{i}"] = self.get_submodule(f"ru{i}")(x)
        out["logits"] = self.score(x)
        return out

    @staticmethod
    def double(x):
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


WIDTHS = (64, 128, 256, 512, 1024)
NETWORKS = {
    "unet": lambda: UNet(WIDTHS, channels=1, classes=2, same=False),
    "unet_same": lambda: UNet(WIDTHS, channels=3, classes=2, same=True),
    "unet_small": UNetSmall,
    "unet_resnet34": UNetResNet34,
    "segnet": SegNet,
    "segnet_basic": SegNetBasic,
    "frrn_a": lambda: FRRN(FRRN.A, FRRN.A_UP),
    "frrn_b": lambda: FRRN(FRRN.B, FRRN.B_UP),
}
