"""The torchvision side of the classifiers' benchmark; it runs in its own process."""

import contextlib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from benchmark_classifiers_jax import make_weights
from benchmark_rounds import seconds_per_call_within
from benchmark_torch import VARIANTS

import zoo
from zoo.weights.deterministic import make_images, make_labels
from zoo.weights.torchvision_live import load_state

with contextlib.suppress(ImportError):
    # Where torch is a CPU build and torchvision is not.
    import torchvision_on_cpu  # noqa: F401
import torchvision


class Side:
    """Everything that the process keeps between its turns."""

    def __init__(self, name: str, dtype: str, threads: int):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.name, self.dtype = name, getattr(torch, dtype)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.preprocess = zoo.get_spec(name).preprocess
        self.weights = make_weights(name)
        self.inferring, self.training = {}, {}

    def create(self, variant: str) -> torch.nn.Module:
        """Creates the network with the weights that the zoo's starts from."""
        layout, compiled = VARIANTS[variant]
        options = {"weights": None}
        if self.name.startswith(("vgg", "googlenet")):
            options["init_weights"] = False
        if self.name.startswith("googlenet"):
            options |= {"aux_logits": False, "transform_input": False}
        model = getattr(torchvision.models, self.name.removesuffix("_tv"))(**options)
        load_state(model, self.weights)
        model = model.to(self.device, memory_format=layout)
        return torch.compile(model) if compiled else model

    def images(self, variant: str, batch: int) -> torch.Tensor:
        """Makes preprocessed float32 images [B, C, H, W] in the variant's layout."""
        images = make_images(self.preprocess, batch).transpose(0, 3, 1, 2)
        images = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        return images.contiguous(memory_format=VARIANTS[variant][0])

    def mixed(self) -> contextlib.AbstractContextManager:
        """The type of the computation, of which the parameters are not."""
        wanted = self.dtype != torch.float32
        return torch.autocast(self.device, self.dtype, enabled=wanted)

    def finish(self) -> None:
        """Waits for what the device has to do."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def logits(self, batch: int) -> np.ndarray:
        """Classifies the first images."""
        model = self.create("torch_eager").eval()
        with torch.inference_mode(), self.mixed():
            return model(self.images("torch_eager", batch)).float().cpu().numpy()

    def time(self, variant: str, kind: str, batch: int, seconds: float) -> float:
        """Returns the seconds of a call, or of a training step."""
        time = self._time_inference if kind == "inference" else self._time_training
        return time(variant, self.images(variant, batch), seconds)

    def _time_inference(self, variant, images, seconds) -> float:
        if variant not in self.inferring:
            self.inferring[variant] = self.create(variant).eval()
        model = self.inferring[variant]

        def call():
            model(images)
            self.finish()

        with torch.inference_mode(), self.mixed():
            return seconds_per_call_within(call, seconds)

    def _time_training(self, variant, images, seconds) -> float:
        if variant not in self.training:
            model = self.create(variant).train()
            options = dict(lr=1e-3, momentum=0.9, fused=True)
            optimizer = torch.optim.SGD(model.parameters(), **options)
            self.training[variant] = model, optimizer
        model, optimizer = self.training[variant]
        labels = torch.from_numpy(make_labels(1000, len(images))).long()
        labels = labels.to(self.device)

        def step():
            with self.mixed():
                loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self.finish()

        return seconds_per_call_within(step, seconds)

    def products_per_second(self, seconds: float) -> float:
        """Multiplies large square matrices: multiply-adds per second."""
        n = 2048 if self.device == "cpu" else 8192
        a = torch.ones((n, n), dtype=self.dtype, device=self.device)

        def call():
            a @ a
            self.finish()

        return n**3 / seconds_per_call_within(call, seconds)


_side: list[Side] = []


def start(name: str, dtype: str, threads: int) -> tuple[int, dict[str, str]]:
    """Creates the side; returns its number of parameters, and versions."""
    _side[:] = [Side(name, dtype, threads)]
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    model = _side[0].create("torch_eager")
    return sum(p.numel() for p in model.parameters()), versions


def call(name: str, *arguments: Any) -> Any:
    """Calls a method of the side, by name."""
    return getattr(_side[0], name)(*arguments)
