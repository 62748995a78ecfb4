"""The GoogLeNet of the paper, restated in plain torch with the names of Caffe's layers.

Reference:
  Szegedy et al., Going Deeper with Convolutions, 2014, table 1, figures 2 and 3. The
  constants of the normalization are not in the paper: n 5, alpha 1e-4, beta 0.75 and
  k 1, where alpha is divided by n, as in Caffe's model.
"""

import torch
from torch import nn
from torch.nn import functional as F

# Table 1: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj.
TABLE = """
3a  64  96 128 16  32  32
3b 128 128 192 32  96  64
4a 192  96 208 16  48  64
4b 160 112 224 24  64  64
4c 128 128 256 24  64  64
4d 112 144 288 32  64  64
4e 256 160 320 32 128 128
5a 256 160 320 32 128 128
5b 384 192 384 48 128 128
"""


class GoogLeNet(nn.Module):
    """Both auxiliary heads run in training mode alone."""

    def __init__(self):
        super().__init__()
        self.add_module("conv1/7x7_s2", nn.Conv2d(3, 64, 7, stride=2, padding=3))
        self.add_module("conv2/3x3_reduce", nn.Conv2d(64, 64, 1))
        self.add_module("conv2/3x3", nn.Conv2d(64, 192, 3, padding=1))
        inputs, self.modules_in_order = 192, []
        for row in TABLE.split("\n")[1:-1]:
            name, *widths = row.split()
            one, reduce3, three, reduce5, five, pool = map(int, widths)
            prefix = f"inception_{name}"
            self.modules_in_order.append(prefix)
            layers = {
                "1x1": nn.Conv2d(inputs, one, 1),
                "3x3_reduce": nn.Conv2d(inputs, reduce3, 1),
                "3x3": nn.Conv2d(reduce3, three, 3, padding=1),
                "5x5_reduce": nn.Conv2d(inputs, reduce5, 1),
                "5x5": nn.Conv2d(reduce5, five, 5, padding=2),
                "pool_proj": nn.Conv2d(inputs, pool, 1),
            }
            for layer, module in layers.items():
                self.add_module(f"{prefix}/{layer}", module)
            inputs = one + three + five + pool
        self.add_module("loss3/classifier", nn.Linear(inputs, 1000))
        for loss, width in (("loss1", 512), ("loss2", 528)):
            self.add_module(f"{loss}/conv", nn.Conv2d(width, 128, 1))
            self.add_module(f"{loss}/fc", nn.Linear(128 * 4 * 4, 1024))
            self.add_module(f"{loss}/classifier", nn.Linear(1024, 1000))

    def conv(self, name, x):
        return F.relu(self.get_submodule(name)(x))

    def inception(self, name, x):
        one = self.conv(f"{name}/1x1", x)
        three = self.conv(f"{name}/3x3", self.conv(f"{name}/3x3_reduce", x))
        five = self.conv(f"{name}/5x5", self.conv(f"{name}/5x5_reduce", x))
        pool = F.max_pool2d(x, 3, stride=1, padding=1)
        pool = self.conv(f"{name}/pool_proj", pool)
        return torch.cat([one, three, five, pool], dim=1)

    def auxiliary(self, loss, x):
        x = F.avg_pool2d(x, 5, stride=3)
        assert x.shape[-2:] == (4, 4)
        x = self.conv(f"{loss}/conv", x)
        x = F.relu(self.get_submodule(f"{loss}/fc")(x.flatten(1)))
        return self.get_submodule(f"{loss}/classifier")(x)

    def forward(self, images):
        def pool(x):
            return F.max_pool2d(x, 3, 2, ceil_mode=True)

        def norm(x):
            return F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

        out = {}
        x = out["conv1"] = self.conv("conv1/7x7_s2", images)
        x = out["pool1"] = pool(x)
        x = out["norm1"] = norm(x)
        x = out["conv2_reduce"] = self.conv("conv2/3x3_reduce", x)
        x = out["conv2"] = self.conv("conv2/3x3", x)
        x = out["norm2"] = norm(x)
        x = out["pool2"] = pool(x)
        for name in self.modules_in_order:
            if name == "inception_4a":
                x = out["pool3"] = pool(x)
            if name == "inception_5a":
                x = out["pool4"] = pool(x)
            x = out[name] = self.inception(name, x)
        assert x.shape[-2:] == (7, 7)
        x = out["pool"] = F.avg_pool2d(x, 7).flatten(1)
        if self.training:
            out["aux1"] = self.auxiliary("loss1", out["inception_4a"])
            out["aux2"] = self.auxiliary("loss2", out["inception_4d"])
        out["logits"] = self.get_submodule("loss3/classifier")(x)
        return out


NETWORKS = {"googlenet": GoogLeNet}
