"""Darknet's weights files, written and read by hand."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_nets import random_variables

import zoo
from zoo.paths import flatten
from zoo.registry import registered
from zoo.weights import read_darknet, save_darknet
from zoo.weights.darknet import read_header

WITH_NORM, WITHOUT = "yolo_v1_tiny_bn", "yolo_v1_tiny"


@pytest.fixture(autouse=True)
def narrow():
    """Makes the layers a few channels wide: files of some kilobytes."""
    stages = tuple(((3, 2 + i % 2),) for i in range(6))
    specs = []
    for name, options in (
        (WITHOUT, dict(stages=(*stages, ((3, 4), (3, 2), (3, 3))), hidden=(4, 6))),
        (WITH_NORM, dict(stages=(*stages, ((3, 4), (3, 3))))),
    ):
        spec = zoo.get_spec(name)
        build = partial(spec.build, **options)
        specs.append(dataclasses.replace(spec, build=build))
    with registered(*specs):
        yield


def make_variables(name, num_classes=20):
    images = jax.ShapeDtypeStruct((1, 448, 448, 3), jnp.float32)
    return random_variables(zoo.build(name, num_classes=num_classes), images)


def write_by_hand(variables, header, *, transposed=False):
    """The bytes of a file, layer by layer as Darknet writes them."""
    leaves = {k: np.asarray(v, "<f4") for k, v in flatten(variables).items()}
    parts = [header]
    convs = sorted(int(k.split("conv")[1].split("/")[0]) for k in leaves if "conv" in k)
    for i in dict.fromkeys(convs):
        if f"params/backbone/bn{i}/scale" in leaves:
            norm = f"backbone/bn{i}"
            parts += [leaves[f"params/{norm}/{k}"] for k in ("bias", "scale")]
            parts += [leaves[f"batch_stats/{norm}/{k}"] for k in ("mean", "var")]
        else:
            parts.append(leaves[f"params/backbone/conv{i}/bias"])
        # Filters, channels, rows, columns.
        parts.append(leaves[f"params/backbone/conv{i}/kernel"].transpose(3, 2, 0, 1))
    for i in range(1, 4):
        if f"params/head/fc{i}/kernel" not in leaves:
            break
        kernel = leaves[f"params/head/fc{i}/kernel"]
        if i == 1:  # rows, columns, channels -> channels, rows, columns
            kernel = kernel.reshape(7, 7, -1, kernel.shape[1]).transpose(2, 0, 1, 3)
            kernel = kernel.reshape(-1, kernel.shape[-1])
        parts += [leaves[f"params/head/fc{i}/bias"], kernel if transposed else kernel.T]
    return b"".join(
        part if isinstance(part, bytes) else part.tobytes() for part in parts
    )


def header(*numbers, seen="<i4"):
    return np.array(numbers[:3], "<i4").tobytes() + np.array(numbers[3], seen).tobytes()


HEADERS = {
    "0.1": (header(0, 1, 0, 64_000), False, 64_000),
    "0.2": (header(0, 2, 5, 2**40, seen="<i8"), False, 2**40),
    # Learning rate, momentum and decay, before there were versions.
    "2015": (np.array([1e-3, 0.9, 5e-4], "<f4").tobytes() + b"\0\1\0\0", True, 256),
}


def assert_same(found, expected):
    found, expected = flatten(found), flatten(expected)
    assert {*found} == {*expected}
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


@pytest.mark.parametrize("version", HEADERS)
@pytest.mark.parametrize("name", [WITHOUT, WITH_NORM])
def test_files_are_read(name, version, tmp_path):
    variables = make_variables(name)
    start, transposed, seen = HEADERS[version]
    path = tmp_path / "net.weights"
    path.write_bytes(write_by_hand(variables, start, transposed=transposed))
    assert read_header(path) == (seen, transposed, len(start))
    model, found, card = zoo.api.create_with_card(name, weights=str(path))
    assert_same(found, variables)
    assert card.num_classes == 20 == model.head.num_classes
    assert card.source == "file net.weights"


@pytest.mark.parametrize("num_classes", [20, 3])
def test_files_are_written(num_classes, tmp_path):
    variables = make_variables(WITH_NORM, num_classes)
    path = tmp_path / "folder" / "net.weights"
    save_darknet(WITH_NORM, path, variables, seen=2**33)
    written = write_by_hand(variables, header(0, 2, 0, 2**33, seen="<i8"))
    assert path.read_bytes() == written
    loaded = zoo.weights.load(WITH_NORM, path, num_classes=num_classes)
    assert_same(loaded.variables, variables)


def test_damaged_files(tmp_path):
    path = tmp_path / "net.weights"
    variables = make_variables(WITHOUT)
    whole = write_by_hand(variables, HEADERS["0.1"][0])
    numbers = len(whole[16:]) // 4
    says = rf"behind its header of 16 bytes there are {{}} bytes, and {WITHOUT} with 20"
    for content, words in (
        (whole[:-4], rf"net.weights is cut off.*{numbers * 4 - 4:,} bytes, and"),
        (whole[:-1], rf"is cut off.*{numbers:,} numbers in {numbers * 4:,} bytes"),
        (whole + b"\0\0\0\0", r"net.weights is too long"),
        (whole + b"\0", says.format(f"{numbers * 4 + 1:,}")),
        (whole[:15], r"net.weights is no weights file of Darknet: 15 bytes"),
        (HEADERS["0.2"][0][:18], r"is no weights file of Darknet: 18 bytes"),
        (b"", r"is no weights file of Darknet: 0 bytes"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            zoo.weights.load(WITHOUT, path)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="yolo_v1_tiny with 19 classes has"):
        zoo.weights.load(WITHOUT, path, num_classes=19)


def test_what_is_no_file_of_darknet(tmp_path):
    path = tmp_path / "net.weights"
    path.write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match=r"are for yolo_v1, .*, not for resnet18"):
        zoo.weights.load("resnet18", path)
    with pytest.raises(ValueError, match=r"are for yolo_v1, .*, not for ssd96_small"):
        save_darknet("ssd96_small", path, {})
    with pytest.raises(FileNotFoundError, match=r"there is no file .*other\.weights"):
        read_darknet(WITHOUT, tmp_path / "other.weights")
    with pytest.raises(ValueError, match=r"must end in \.weights, got '\.bin'"):
        save_darknet(WITHOUT, tmp_path / "net.bin", {})
    with pytest.raises(ValueError, match="seen must be 0 or more, got -1"):
        save_darknet(WITHOUT, path, make_variables(WITHOUT), seen=-1)
    with pytest.raises(ValueError, match="the variables do not fit the network"):
        save_darknet(WITHOUT, path, make_variables(WITH_NORM))
    assert path.read_bytes() == b"\0" * 100
