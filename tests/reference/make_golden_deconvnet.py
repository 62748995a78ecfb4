"""Makes the golden files of deconvnet, guided backprop and the gradient.

    python tests/reference/make_golden_deconvnet.py [NAME ...]

They hold summaries of the maps of every layer of `alexnet`, `zfnet` and `vgg16`, with
the deterministic weights and images of `zoo.weights`, as `restate_deconvnet.py` beside
this file computes them in float64.
"""

import datetime
import sys
from pathlib import Path

import restate_deconvnet
import torch

from zoo.verify import parity
from zoo.verify.summaries import save_summaries, summarize

FOLDER = Path(__file__).parent / "golden"
NAMES = ("alexnet", "zfnet", "vgg16")
# Images, samples and sums that are kept.
COUNT, SAMPLES, SUMS = 1, 64, 8


def main(names):
    for name in names or NAMES:
        images, _ = parity.make_example(name)
        state = parity.deterministic_state(name)
        weights = {
            key: torch.tensor(v, dtype=torch.float64) for key, v in state.items()
        }
        if name == "vgg16":
            keys = [k.removesuffix(".weight") for k in weights if k.endswith("weight")]
            order = sorted(keys, key=lambda k: (k[0] == "c", int(k.split(".")[1])))
            layers = restate_deconvnet.make_vgg16(order)
        else:
            layers = getattr(restate_deconvnet, name.upper())
        images = torch.tensor(images[:COUNT].transpose(0, 3, 1, 2), dtype=torch.float64)
        with torch.no_grad():
            network = restate_deconvnet.Restated(layers, weights, images)
            sections = {}
            for method in restate_deconvnet.METHODS:
                maps = {
                    endpoint: network.project(endpoint, method).numpy()
                    for endpoint, _ in layers
                }
                maps = {k: v.transpose(0, 2, 3, 1) for k, v in maps.items()}
                sections[method] = summarize(maps, samples=SAMPLES, sums=SUMS)
        facts = {
            "source": f"restate_deconvnet.py, torch {torch.__version__}",
            "date": datetime.date.today().isoformat(),
        }
        path = FOLDER / f"deconvnet_{name}.npz"
        save_summaries(path, sections, facts)
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
