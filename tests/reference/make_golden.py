"""Makes the golden files by which networks are held against their sources.

    python tests/reference/make_golden.py [NAME ...]

Without names it makes all of them. A network with public weights is torchvision's, any
other is restated from its paper in the `restate_*.py` beside this file. Both are filled
with the deterministic weights of `zoo.verify.deterministic` and run in torch in
float64; a run in float32 tells how exact that can be.

Where torchvision's compiled part does not fit the torch that is installed, a module
`torchvision_on_cpu` on the path may declare what is missing; it is imported first.
"""

import contextlib
import datetime
import gc
import sys

import numpy as np
import restate_columns
import restate_encoder_decoder
import restate_googlenet
import restate_residual
import restate_segmentation
import torch
from torch.nn import functional as F

import zoo
from zoo.verify import parity, torchvision_live
from zoo.verify.deterministic import BRANCH_GAIN
from zoo.verify.summaries import measure, save_summaries
from zoo.verify.verification import golden_path

with contextlib.suppress(ImportError):
    import torchvision_on_cpu  # noqa: F401

RESTATED = {
    **restate_columns.NETWORKS,
    **restate_googlenet.NETWORKS,
    **restate_residual.NETWORKS,
    **restate_segmentation.NETWORKS,
    **restate_encoder_decoder.NETWORKS,
}


# Images of networks that take any size, in pixels: small, and no multiples.
ANY_SIZE = (74, 91)
# Those of networks that need other ones.
SIZES = {"unet": (188, 204), "frrn_a": (64, 96), "frrn_b": (64, 96)}
# Networks that put values where a pool took its own: in float32 a pool near a tie takes
# another pixel than its source's.
SWITCHED = ("segnet", "segnet_basic")


def make_facts(name):
    """What the golden file says of the example: size, type, and factor of branches."""
    fit = zoo.get_spec(name).preprocess.fit
    return {
        "size": SIZES.get(name, ANY_SIZE) if fit in ("keep", "sides") else None,
        "dtype": "float64" if name in SWITCHED else "float32",
        # Plain networks have the same names, and lose the signal if it is damped.
        "branch_gain": BRANCH_GAIN if "resnet" in name else 1.0,
    }


class Source:
    """The network that is the reference.

    Attributes:
      description: Where it is from.
    """

    def __init__(self, name):
        self.hooks = None
        if name in RESTATED:
            self.network = RESTATED[name]()
            file = sys.modules[RESTATED[name].__module__].__name__
            self.description = f"tests/{file}.py, torch {torch.__version__}"
        else:
            aux = "aux" in zoo.list_options(name)
            self.network = torchvision_live.build_torchvision(name, aux=aux)
            self.hooks = torchvision_live.list_hooks(self.network, aux=aux)
            self.description = torchvision_live.torchvision_version()
        gain = make_facts(name)["branch_gain"]
        options = parity.training_options(name)
        state = parity.deterministic_state(name, branch_gain=gain, **options)
        torchvision_live.load_state(self.network, state)

    def run(self, images):
        if self.hooks is None:
            return self.network(images)
        return torchvision_live.run(self.network, self.hooks, images)


def run_evaluation(source, images, dtype):
    network = source.network.to(dtype).eval()
    images = torch.tensor(images.transpose(0, 3, 1, 2), dtype=dtype)
    with torch.no_grad():
        outputs = source.run(images)
    assert next(network.parameters()).dtype == dtype
    arrays = {k: torchvision_live.to_our_axes(v) for k, v in outputs.items()}
    return parity.summarize_endpoints(arrays)


def compute_step(source, images, labels, aux_losses, dtype):
    network = source.network.to(dtype).train()
    images = torch.tensor(images.transpose(0, 3, 1, 2), dtype=dtype)
    labels = torch.tensor(labels, dtype=torch.int64)
    outputs = source.run(images)
    loss = F.cross_entropy(outputs["logits"], labels)
    for head, factor in aux_losses:
        loss = loss + factor * F.cross_entropy(outputs[head], labels)
    del outputs
    network.zero_grad()
    loss.backward()
    gradients = {k: p.grad.numpy() for k, p in network.named_parameters()}
    statistics = {k: v.numpy() for k, v in network.named_buffers() if ".running_" in k}
    return {
        "loss": {"loss": np.array([loss.item()])},
        "gradients": gradients,
        "statistics": statistics,
    }


def run_step(*args):
    step = compute_step(*args)
    return {k: parity.summarize_parameters(arrays) for k, arrays in step.items()}


def make_golden(name):
    spec = zoo.get_spec(name)
    example = make_facts(name)
    images, labels = parity.make_example(name, example["size"])
    runs = {}
    for dtype in (torch.float64, torch.float32):
        source = Source(name)
        endpoints = run_evaluation(source, images, dtype)
        step = run_step(source, images, labels, spec.aux_losses, dtype)
        runs[dtype] = {"endpoints": endpoints, **step}
        description = source.description
        del source
        gc.collect()
    exact, single = runs[torch.float64], runs[torch.float32]
    errors = {}
    for section in exact:
        by_layer = section == "gradients"
        found = measure(single[section], exact[section], by_layer=by_layer)
        errors[section] = max(found.values(), default=0.0)
    facts = {
        "model": name,
        "reference": f"{description}, float64",
        "date": datetime.date.today().isoformat(),
        "script": "tests/reference/make_golden.py",
        "example": example,
        "float32_errors": errors,
    }
    save_summaries(golden_path(name), exact, facts)
    size = golden_path(name).stat().st_size
    text = "  ".join(f"{k} {e:.1e}" for k, e in errors.items())
    loss = float(exact["loss"].samples[0, 0])
    print(f"{name:<20} {size:>7,} bytes  loss {loss:8.3f}  float32: {text}", flush=True)


def main(names):
    known = [
        name
        for task in ("classification", "segmentation")
        for name in zoo.list_models(task=task)
    ]
    for name in names or known:
        if name in RESTATED or zoo.get_spec(name).torchvision:
            make_golden(name)
        else:
            print(f"{name:<20} has no reference")


if __name__ == "__main__":
    main(sys.argv[1:])
