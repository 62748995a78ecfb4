"""PyTorch's side of the segmentation benchmark; it runs in its own process."""

import contextlib

import numpy as np
import restate_encoder_decoder
import restate_segmentation
import torch
import torch.nn.functional as F
from benchmark_rounds import seconds_per_call_within
from benchmark_segmentation_jax import AUX, make_batch, make_masks, make_weights
from benchmark_torch import VARIANTS

from zoo.weights.torchvision_live import load_state

with contextlib.suppress(ImportError):
    # Where torch is a CPU build and torchvision is not.
    import torchvision_on_cpu  # noqa: F401
import torchvision

RESTATED = {**restate_segmentation.NETWORKS, **restate_encoder_decoder.NETWORKS}


def build(name: str) -> torch.nn.Module:
    """Builds torchvision's network, or the plain statement of another one."""
    if name in RESTATED:
        return RESTATED[name]()
    options = {"weights": None, "weights_backbone": None, "aux_loss": True}
    return getattr(torchvision.models.segmentation, name)(num_classes=21, **options)


class Side:
    """Everything that the process keeps between its turns."""

    def __init__(self, name: str, threads: int):
        torch.set_num_threads(threads)
        self.versions = {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        }
        self.name, self.models = name, {}

    def create(self, variant: str) -> torch.nn.Module:
        """Creates the network once, with the weights that the zoo's has."""
        if variant not in self.models:
            model = build(self.name)
            load_state(model, make_weights(self.name))
            self.models[variant] = model.to(memory_format=VARIANTS[variant][0])
        return self.models[variant]

    def time(self, variant: str, kind: str, count: int, seconds: float) -> float:
        """Returns the seconds of a call, or of a training step."""
        model = self.create(variant).train(kind == "train")
        images = make_batch(self.name, count).transpose(0, 3, 1, 2)
        images = torch.from_numpy(np.ascontiguousarray(images))
        images = images.contiguous(memory_format=VARIANTS[variant][0])
        if kind == "inference":
            with torch.inference_mode():
                return seconds_per_call_within(lambda: model(images), seconds)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        masks = []

        def step():
            out = model(images)
            logits = out.get("out", out.get("logits"))
            if not masks:
                shape = (count, *logits.shape[2:])
                masks.append(torch.from_numpy(make_masks(self.name, shape)).long())
            loss = F.cross_entropy(logits, masks[0])
            if "aux" in out:
                loss = loss + AUX * F.cross_entropy(out["aux"], masks[0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return seconds_per_call_within(step, seconds)
