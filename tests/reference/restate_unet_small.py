"""The zoo's small U-Net, restated in plain torch.

It shares no code with the zoo. `forward` takes images [B, C, H, W] and returns the
endpoints by name.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Holder(nn.Module):
    """Gives what it holds a name."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


class UNetSmall(nn.Module):
    """Four levels from half the image's size on, with scores of the third one."""

    def __init__(self, classes=11):
        super().__init__()
        inputs = 3
        for i, width in enumerate((16, 64, 96, 128), start=1):
            self.add_module(f"down{i}", self.convs(inputs, width, count=2))
            inputs = width
        self.down1.conv1.stride = (2, 2)
        self.up3 = self.convs(128 + 96, 64, count=1)
        self.up2 = self.convs(64 + 64, 48, count=1)
        self.up1 = self.convs(48 + 16, 16, count=1)
        self.score = nn.Conv2d(16, classes, 1)
        self.aux = nn.Conv2d(96, classes, 1)

    @staticmethod
    def convs(inputs, width, count):
        layers = {}
        for j in range(1, count + 1):
            layers[f"conv{j}"] = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
            layers[f"bn{j}"], inputs = nn.BatchNorm2d(width), width
        return Holder(**layers)

    def forward(self, images):
        out, x = {}, images

        def run(step, x):
            for name, layer in step.named_children():
                x = F.relu(layer(x)) if name.startswith("bn") else layer(x)
            return x

        def enlarge(x):
            size = images.shape[2:]
            return F.interpolate(x, size, mode="bilinear", align_corners=False)

        for i in (1, 2, 3, 4):
            x = out[f"down{i}"] = run(self.get_submodule(f"down{i}"), x)
            if i < 4:
                x = out[f"pool{i}"] = F.max_pool2d(x, 2)
        for i in (3, 2, 1):
            skip = out[f"down{i}"]
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            # After a pool of an odd number, zeros below and on the right.
            rows, columns = (skip.shape[k] - x.shape[k] for k in (2, 3))
            x = torch.cat([skip, F.pad(x, (0, columns, 0, rows))], dim=1)
            x = out[f"up{i}"] = run(self.get_submodule(f"up{i}"), x)
        out["score"] = self.score(x)
        out["aux"] = enlarge(self.aux(out["down3"]))
        out["logits"] = enlarge(out["score"])
        return out
