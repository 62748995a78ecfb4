"""torchvision's side of the detectors' benchmark; it runs in its own process."""

import numpy as np
import torch
from benchmark_detection_ops import import_torchvision
from benchmark_detectors_jax import MAPS, make_objects, make_photographs
from benchmark_rounds import seconds_per_call_within
from benchmark_torch import VARIANTS

from zoo.verify.deterministic import BRANCH_GAIN
from zoo.verify.parity import deterministic_state
from zoo.verify.torchvision_live import load_state

torchvision, OPERATORS = import_torchvision()
BUILDERS = {
    "ssd300_vgg16": torchvision.models.detection.ssd300_vgg16,
    "faster_rcnn_resnet50_fpn": torchvision.models.detection.fasterrcnn_resnet50_fpn,
}


class Side:
    """Everything that the process keeps between its turns."""

    def __init__(self, name: str, threads: int):
        torch.set_num_threads(threads)
        self.versions = {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "torchvision_operators": OPERATORS,
        }
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.name, self.models = name, {}

    def create(self, variant: str) -> torch.nn.Module:
        """Creates the network once, with the same weights as the zoo's."""
        if variant not in self.models:
            options = {"weights": None, "weights_backbone": None, "num_classes": 91}
            model = BUILDERS[self.name](**options)
            gain = BRANCH_GAIN if "resnet" in self.name else 1.0
            load_state(model, deterministic_state(self.name, branch_gain=gain))
            self.models[variant] = model.to(
                self.device, memory_format=VARIANTS[variant][0]
            )
        return self.models[variant]

    def finish(self) -> None:
        """Waits for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def time(self, variant: str, kind: str, count: int, seconds: float) -> float:
        """Returns the seconds of a call, or of a training step."""
        model = self.create(variant).train(kind == "train")
        photographs = make_photographs(self.name, count).transpose(0, 3, 1, 2)
        images = [
            torch.from_numpy(np.ascontiguousarray(p)).to(self.device)
            for p in photographs
        ]
        if kind == "train":
            return self._time_training(model, images, seconds)

        def detect():
            # The zoo's input is uint8, too.
            model([image.float() / 255 for image in images])
            self.finish()

        def run_network():
            maps = model.backbone(batch)
            if self.name not in MAPS:
                model.head([*maps.values()])
            self.finish()

        with torch.inference_mode():
            if kind == "detect":
                return seconds_per_call_within(detect, seconds)
            batch = model.transform([image.float() / 255 for image in images])[0]
            layout = VARIANTS[variant][0]
            batch = batch.tensors.contiguous(memory_format=layout)
            return seconds_per_call_within(run_network, seconds)

    def _time_training(self, model, images, seconds) -> float:
        boxes, classes = make_objects(self.name, len(images))
        targets = [
            {
                "boxes": torch.from_numpy(b).to(self.device),
                "labels": torch.from_numpy(c).long().to(self.device) + 1,
            }
            for b, c in zip(boxes, classes, strict=True)
        ]
        images = [image.float() / 255 for image in images]
        params = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(params, lr=1e-4, momentum=0.9)

        def step():
            loss = sum(model(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self.finish()

        return seconds_per_call_within(step, seconds)
