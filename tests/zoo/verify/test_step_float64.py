"""A training step in float64 is that of PyTorch in float64, to nine digits.

No rounding is left to hide behind: in float32 a single maximum that is taken from
another pixel moves the gradient of a first layer by 4e-3.
"""

import numpy as np
import pytest

import zoo
from zoo.verify import parity
from zoo.verify.summaries import load_summaries
from zoo.verify.verification import golden_path

torch = pytest.importorskip("torch")
import make_golden  # noqa: E402

TOLERANCE = 1e-9
# Small networks, and images of a few pixels where the network takes any.
SMALL = {"lenet5_modern": None, "cifar_resnet20": (9, 9), "unet_small": (37, 40)}
# A quarter of an hour and more each, and the code is that of fewer layers.
DEEPEST = ("cifar_resnet1001_v2", "resnext101_32x8d")
# Seconds to minutes each, at the size of the golden file.
LARGE = [n for n in make_golden.RESTATED if n not in (*SMALL, *DEEPEST)]
TORCHVISION = [
    n for n in zoo.list_models() if zoo.get_spec(n).torchvision and n not in DEEPEST
]


def measure(found, expected, section):
    """Largest difference of any array, relative to the largest value of its layer."""
    assert {*found} == {*expected}
    units = {}
    for name, array in expected.items():
        # A bias before a batch norm has the gradient zero: its kernel is the measure.
        layer = name.rpartition(".")[0] if section == "gradients" else name
        units[layer] = max(units.get(layer, 0.0), np.abs(array).max())
    errors = {}
    for name, array in expected.items():
        layer = name.rpartition(".")[0] if section == "gradients" else name
        assert found[name].dtype == array.dtype == np.float64, name
        assert found[name].shape == array.shape, name
        errors[name] = np.abs(found[name] - array).max() / units[layer]
    return errors


def check_step(name, size, jit):
    source = make_golden.Source(name)
    images, labels = parity.make_example(name, size)
    spec = zoo.get_spec(name)
    expected = make_golden.compute_step(
        source, images, labels, spec.aux_losses, torch.float64
    )
    gain = make_golden.make_facts(name)["branch_gain"]
    options = parity.training_options(name)
    state = parity.deterministic_state(name, branch_gain=gain, **options)
    found = parity.compute_step(name, state, "float64", jit, size=size)
    for section, arrays in expected.items():
        errors = measure(found[section], arrays, section)
        wrong = {k: float(e) for k, e in errors.items() if not e <= TOLERANCE}
        assert not wrong, f"{name}, {section}: {wrong}"
    assert np.abs(expected["loss"]["loss"]).max() > 0


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.apart] * n.startswith("unet")) for n in SMALL],
)
def test_small_networks(name, cheap_jit):
    check_step(name, SMALL[name], cheap_jit)


@pytest.mark.apart
@pytest.mark.parametrize("name", LARGE)
def test_restated_networks(name, cheap_jit):
    _, facts = load_summaries(golden_path(name))
    check_step(name, facts["example"]["size"], cheap_jit)


@pytest.mark.apart
@pytest.mark.parametrize("name", TORCHVISION)
def test_networks_of_torchvision(name, cheap_jit):
    pytest.importorskip("torchvision")
    _, facts = load_summaries(golden_path(name))
    check_step(name, facts["example"]["size"], cheap_jit)
