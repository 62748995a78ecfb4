"""Every network computes what its source computes, at every named endpoint.

The expected values are in the golden files of `make_golden.py`; no torch is needed.
"""

import pytest

import zoo
from zoo.verify.summaries import load_summaries
from zoo.verify.verification import GOLDEN, golden_path, verify

# Classifiers without a golden file, and why.
WITHOUT = {
    "lenet5": "its layers are held against numpy in test_lenet.py",
    "zfnet64_small": "its layers are held against torch in test_zfnet.py",
    **{
        f"cifar_{kind}{depth}": "differs from the 20 and 110 layers in a number alone"
        for kind, depths in (
            ("resnet", (32, 44, 56, 1202)),
            ("plain", (32, 44, 56, 110)),
        )
        for depth in depths
    },
}
NETWORKS = [n for n in zoo.list_models(task="classification") if n not in WITHOUT]
# The default run has the smallest of several kinds; `pytest -m apart` has the others,
# minutes together. Training steps are held against live torch in test_step_float64.py.
ALWAYS = "lenet5_modern alexnet_tv cifar_resnet20 resnet18".split()
STEPS = ["lenet5_modern"]
# One network of each kind of block.
STEPPED = "alexnet zfnet vgg11_bn googlenet_tv resnet18 resnet50_v1".split()
STEPPED += "cifar_resnet20 cifar_resnet164_v2 resnext50_32x4d msra_small14".split()


def mark(names, always):
    return [
        pytest.param(n, marks=[] if n in always else pytest.mark.apart) for n in names
    ]


def test_every_classifier_has_a_golden_file():
    files = {path.stem for path in GOLDEN.glob("*")}
    assert files & {*zoo.list_models(task="classification")} == {*NETWORKS}


@pytest.mark.parametrize("name", NETWORKS)
def test_golden_files_are_of_the_network(name):
    sections, facts = load_summaries(golden_path(name))
    assert facts["model"] == name
    assert ("torchvision" in facts["reference"]) == (
        zoo.get_spec(name).weights != () and not name.startswith("cifar")
    )
    # torch itself in float32 is well within the tolerance that is demanded here.
    assert facts["float32_errors"]["endpoints"] < 6e-6
    assert sections["loss"].shapes == ((1,),)
    assert {*sections} == {"endpoints", "loss", "gradients", "statistics"}


@pytest.mark.parametrize("name", mark(NETWORKS, ALWAYS))
def test_endpoints(name):
    certificate = verify(name)
    assert certificate.passed, f"\n{certificate}"
    assert all(check.tolerance == 1e-5 for check in certificate.checks)
    assert certificate.checks[-1].name == "logits"


@pytest.mark.parametrize("name", mark([*STEPS, *STEPPED], STEPS))
def test_training_step(name):
    certificate = verify(name, training="float64")
    assert certificate.passed, f"\n{certificate}"
    assert all(check.tolerance == 1e-6 for check in certificate.checks)


@pytest.mark.parametrize("name", mark([*STEPS, *STEPPED], STEPS))
def test_training_step_in_float32(name):
    certificate = verify(name, training="float32")
    assert certificate.passed, f"\n{certificate}"
