"""`zoo.create` with weights builds the network once."""

import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

import zoo
from zoo.classification.lenet import lenet5_modern
from zoo.weights import save_safetensors, to_torch

NAME = "lenet5_modern"


def count_builds(run):
    """How often `run` calls the function that builds the network, and its result."""
    calls = []

    def profile(frame, event, argument):
        if event == "call" and frame.f_code is lenet5_modern.__code__:
            calls.append(frame)

    sys.setprofile(profile)
    try:
        result = run()
    finally:
        sys.setprofile(None)
    return len(calls), result


def filled(num_classes):
    """Variables of the network without its random ones, and their card."""
    _, variables, card = zoo.create_with_card(NAME, num_classes=num_classes)
    return variables, card


def test_new_variables():
    assert count_builds(lambda: zoo.create(NAME))[0] == 1


@pytest.mark.parametrize("num_classes", [10, 7])
@pytest.mark.parametrize("layout", ["zoo", "torch"])
def test_weights_with_a_card(tmp_path, num_classes, layout):
    variables, card = filled(num_classes)
    path = tmp_path / "weights.safetensors"
    save_safetensors(path, variables, card, layout=layout)
    builds, (model, loaded) = count_builds(lambda: zoo.create(NAME, weights=path))
    assert builds == 1
    assert model.head.num_classes == num_classes
    kernel = loaded["params"]["head"]["ip2"]["kernel"]
    np.testing.assert_array_equal(kernel, variables["params"]["head"]["ip2"]["kernel"])


@pytest.mark.parametrize(("num_classes", "expected"), [(10, 1), (7, 2)])
def test_weights_without_a_card(tmp_path, num_classes, expected):
    # That there are other classes than the paper's is known when the file was read.
    variables, _ = filled(num_classes)
    path = tmp_path / "weights.safetensors"
    save_file(to_torch(NAME, variables), path)
    builds, (model, _) = count_builds(lambda: zoo.create(NAME, weights=path))
    assert builds == expected
    assert model.head.num_classes == num_classes


def test_a_wrong_option_is_named_before_the_weights_are_looked_for():
    with pytest.raises(ValueError, match="unknown option of lenet5_modern 'dtyp'"):
        zoo.create(NAME, weights="nowhere.safetensors", dtyp=1)
