"""The torchvision side of the classifiers' benchmark; it runs in its own process."""

import contextlib

import numpy as np
import torch
import torch.nn.functional as F
from benchmark_classifiers_jax import make_weights
from benchmark_rounds import seconds_per_call_within
from benchmark_torch import VARIANTS, ResNet

import zoo
from zoo.verify.deterministic import make_images, make_labels
from zoo.verify.torchvision_live import load_state

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
        self.versions = {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        }
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        spec = zoo.get_spec(name)
        self.preprocess, self.num_classes = spec.preprocess, spec.num_classes
        self.weights = make_weights(name)
        self.inferring, self.training = {}, {}

    def parameters(self) -> int:
        """Counts the trained parameters."""
        return sum(p.numel() for p in self.create("torch_eager").parameters())

    def create(self, variant: str) -> torch.nn.Module:
        """Creates the network with the weights that the zoo's starts from."""
        layout, compiled = VARIANTS[variant]
        if self.name.startswith("cifar_resnet"):
            model = ResNet(zoo.build(self.name).backbone.blocks[0])
        else:
            model = self.create_torchvision()
        load_state(model, self.weights)
        model = model.to(self.device, memory_format=layout)
        return torch.compile(model) if compiled else model

    def create_torchvision(self) -> torch.nn.Module:
        """Creates torchvision's network."""
        options = {"weights": None}
        if self.name.startswith(("vgg", "googlenet")):
            options["init_weights"] = False
        if self.name.startswith("googlenet"):
            options |= {"aux_logits": False, "transform_input": False}
        return getattr(torchvision.models, self.name.removesuffix("_tv"))(**options)

    def images(self, variant: str, batch: int) -> torch.Tensor:
        """Makes preprocessed float32 images [B, C, H, W] in the variant's layout."""
        images = make_images(self.preprocess, batch).transpose(0, 3, 1, 2)
        images = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        return images.contiguous(memory_format=VARIANTS[variant][0])

    def mixed(self) -> contextlib.AbstractContextManager:
        """Computes in the benchmark's type; parameters stay in float32."""
        wanted = self.dtype != torch.float32
        return torch.autocast(self.device, self.dtype, enabled=wanted)

    def finish(self) -> None:
        """Waits for the device."""
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
        labels = torch.from_numpy(make_labels(self.num_classes, len(images))).long()
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
