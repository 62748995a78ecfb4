"""Every segmentation network computes what its source computes, at every endpoint.

The expected values are in the golden files of `make_golden.py`; no torch is needed.
"""

import pytest

import zoo
from zoo.segmentation import fcn
from zoo.verify.summaries import load_summaries
from zoo.verify.verification import golden_path, verify

NETWORKS = zoo.list_models(task="segmentation")
# The default run has the smallest; `pytest -m apart` has the others, minutes together.
ALWAYS = ["unet_small"]
STEPS: list[str] = []


def mark(names, always):
    return [
        pytest.param(n, marks=[] if n in always else pytest.mark.apart) for n in names
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_golden_files_are_of_the_network(name):
    sections, facts = load_summaries(golden_path(name))
    assert facts["model"] == name
    assert ("torchvision" in facts["reference"]) == (zoo.get_spec(name).weights != ())
    if facts["example"]["dtype"] == "float32":
        # torch itself in float32 is well within the tolerance that is demanded here.
        assert facts["float32_errors"]["endpoints"] < 6e-6
    assert {*sections} == {"endpoints", "loss", "gradients", "statistics"}
    endpoints = sections["endpoints"]
    assert endpoints.names[-1] == "logits"
    assert ("aux" in endpoints.names) == ("aux" in zoo.list_options(name))


@pytest.mark.parametrize("name", mark(NETWORKS, ALWAYS))
def test_endpoints(name):
    certificate = verify(name)
    assert certificate.passed, f"\n{certificate}"
    assert all(check.tolerance == 1e-5 for check in certificate.checks)
    assert certificate.checks[-1].name == "logits"


@pytest.mark.parametrize("name", mark(NETWORKS, STEPS))
def test_training_step(name):
    certificate = verify(name, training="float64")
    assert certificate.passed, f"\n{certificate}"
    assert all(check.tolerance == 1e-6 for check in certificate.checks)


@pytest.mark.apart
def test_a_crop_that_is_one_pixel_off_is_found(monkeypatch):
    first, (upscore, pool, offset) = fcn.SKIPS[8]
    wrong = {**fcn.SKIPS, 8: (first, (upscore, pool, offset - 1))}
    monkeypatch.setattr(fcn, "SKIPS", wrong)
    certificate = verify("fcn8s_vgg16")
    failed = [c.name for c in certificate.checks if c.error > c.tolerance]
    assert failed == ["fuse_pool3", "logits"]
