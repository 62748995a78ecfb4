"""Makes the golden file of locally connected layers, by PyTorch's unfold in float64.

python tests/reference/make_golden_locally_connected.py
"""

from pathlib import Path

import numpy as np
import torch

OUT = Path(__file__).parent / "golden" / "locally_connected.npz"
# Height, width, kh, kw, inputs, outputs, stride.
CASES = ((9, 7, 3, 2, 3, 2, 1), (11, 8, 3, 3, 2, 3, 2))


def main() -> None:
    """Writes inputs, outputs and gradients of both cases."""
    arrays, rng = {}, np.random.default_rng(20)
    for i, (height, width, kh, kw, inputs, outputs, stride) in enumerate(CASES):
        rows, columns = (height - kh) // stride + 1, (width - kw) // stride + 1
        shapes = {
            "x": (2, height, width, inputs),
            "kernel": (rows, columns, kh, kw, inputs, outputs),
            "bias": (rows, columns, outputs),
        }
        given = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
        x, kernel, bias = (
            torch.tensor(np.float64(value), requires_grad=True)
            for value in given.values()
        )
        patches = torch.nn.functional.unfold(
            x.permute(0, 3, 1, 2), (kh, kw), stride=stride
        )
        patches = patches.reshape(2, inputs, kh, kw, rows, columns)
        y = torch.einsum("bcijhw,hwijco->bhwo", patches, kernel) + bias
        y.square().sum().backward()
        found = {"y": y.detach(), "dx": x.grad, "dkernel": kernel.grad}
        given |= {k: v.numpy().astype(np.float32) for k, v in found.items()}
        given["stride"] = np.int32(stride)
        arrays |= {f"{i}/{name}": value for name, value in given.items()}
    OUT.parent.mkdir(exist_ok=True)
    np.savez_compressed(OUT, **arrays)


if __name__ == "__main__":
    main()
