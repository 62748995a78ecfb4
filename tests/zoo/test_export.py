"""Shipped networks: the same numbers where there is no zoo, for any batch."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import NARROW, image_shape

import zoo
from zoo.__main__ import main
from zoo.ops.convolution import convolve
from zoo.summary import abstract_variables

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
# What a user without the zoo writes.
ELSEWHERE = """
import json, sys
import jax, numpy as np

folder = sys.argv[1]
with open(f"{folder}/network.stablehlo", "rb") as file:
    exported = jax.export.deserialize(file.read())
images = np.load(f"{folder}/images.npy")
found = [exported.call(images[:n]) for n in (1, 3)]
np.savez(f"{folder}/logits.npz", *found)
try:
    exported.call(images[:, 1:])
except ValueError as error:
    message = str(error)
loaded = [m for m in ("flax", "zoo", "optax") if m in sys.modules]
print(json.dumps({"message": message, "loaded": loaded, "on": exported.platforms}))
"""


@pytest.fixture(scope="module")
def lenet():
    return zoo.create_with_card("lenet5_modern", num_classes=7)


def shapes_of(name, **options):
    return abstract_variables(zoo.build(name, **options), image_shape(name))


def load(artifact):
    assert type(artifact) is bytes
    return jax.export.deserialize(bytearray(artifact))


def run_elsewhere(folder):
    command = [sys.executable, "-c", "import jax.export\n" + ELSEWHERE, str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), np.load(folder / "logits.npz")


def test_runs_with_jax_alone_for_any_batch(lenet, tmp_path):
    model, variables, card = lenet
    artifact = zoo.export("lenet5_modern", variables, preprocess=card.preprocess)
    (tmp_path / "network.stablehlo").write_bytes(artifact)
    np.save(tmp_path / "images.npy", IMAGES)

    said, logits = run_elsewhere(tmp_path)

    expected = jax.jit(model.apply)(variables, zoo.normalize(IMAGES, card.preprocess))
    assert expected.shape == (3, 7)
    np.testing.assert_allclose(logits["arr_1"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits["arr_0"], expected[:1], rtol=1e-5, atol=1e-5)
    assert said["loaded"] == []
    assert said["on"] == ["cpu", "cuda", "tpu"]
    assert "expected (b, 28, 28, 1) and called with (3, 27, 28, 1)" in said["message"]


def test_command_writes_the_same_artifact(tmp_path, capsys):
    target = tmp_path / "network.stablehlo"
    options = ["--preprocess", "--batch", "2", "--num-classes", "7"]
    main(["export", "lenet5_modern", str(target), *options, "--platforms", "cpu"])
    assert str(target) in capsys.readouterr().out
    exported = load(target.read_bytes())
    assert [str(a) for a in exported.in_avals] == ["uint8[2,28,28,1]"]
    assert [str(a) for a in exported.out_avals] == ["float32[2,7]"]
    assert exported.platforms == ("cpu",)


def test_variables_can_be_an_argument(lenet):
    model, variables, _ = lenet
    shapes = shapes_of("lenet5_modern", num_classes=7)
    artifact = zoo.export("lenet5_modern", shapes, constants=False, platforms=["cpu"])
    images = IMAGES.astype(np.float32) / 255
    found = load(artifact).call(variables, images)
    np.testing.assert_allclose(found, model.apply(variables, images), rtol=1e-5)
    # 433,000 parameters are in the one file, and in the other they are not.
    whole = zoo.export("lenet5_modern", variables, platforms=["cpu"])
    assert len(artifact) < 20_000 < 4 * 400_000 < len(whole)


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((1, 1, 8, 6), {}),
        ((1, 1, 8, 6), {"strides": (2, 2)}),
        ((3, 3, 8, 6), {"padding": ((1, 1), (1, 1)), "strides": (2, 2)}),
        ((3, 3, 8, 6), {"dilation": (2, 2)}),
        ((3, 3, 4, 6), {"groups": 2}),
        ((3, 3, 1, 16), {"groups": 8}),
        ((9, 9, 8, 6), {"padding": ((4, 4), (4, 4))}),
    ],
    ids=str,
)
def test_every_formulation_of_the_convolution_takes_any_batch(kernel, options):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=kernel).astype(np.float32)
    images = rng.normal(size=(3, 9, 9, 8)).astype(np.float32)

    def function(x):
        return convolve(x, kernel, **options)

    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 9, 9, 8"), jnp.float32)
    exported = jax.export.export(jax.jit(function))(shape)
    for count in (1, 3):
        found, expected = exported.call(images[:count]), function(images[:count])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_options_reach_the_network():
    shapes = shapes_of("lenet5_modern", num_classes=0)
    options = dict(constants=False, num_classes=0)
    exported = load(zoo.export("lenet5_modern", shapes, dtype=jnp.bfloat16, **options))
    assert str(exported.out_avals[0]) == "bfloat16[b,500]"
    with jax.default_matmul_precision("highest"):
        exported = load(zoo.export("lenet5_modern", shapes, **options))
    assert "HIGHEST" in exported.mlir_module()
    exported = load(zoo.export("lenet5_modern", shapes, **options))
    assert "HIGHEST" not in exported.mlir_module()


def test_size_and_channel_order_follow_the_preprocessing():
    pre, narrow = zoo.get_spec("alexnet").preprocess, NARROW["alexnet"]
    shapes = shapes_of("alexnet", **narrow)
    options = dict(constants=False, fully_convolutional=True, preprocess=pre, **narrow)
    exported = load(zoo.export("alexnet", shapes, size=300, **options))
    assert exported.in_avals[-1].shape[1:] == (300, 300, 3)
    exported = load(zoo.export("alexnet", shapes, **options))
    assert exported.in_avals[-1].shape[1:] == (227, 227, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch must be a positive number, or a name such as 'b'"),
        ({"batch": "2.5"}, "got '2.5'"),
        ({"platforms": ["gpu"]}, r"'rocm', 'tpu'\], got \['gpu'\]"),
        ({"platforms": []}, r"platforms must be some of \['cpu'"),
        ({"num_classes": 8}, r"head/ip2/kernel is \[500, 7\], the network needs"),
        ({"dtyp": "float32"}, "unknown option of lenet5_modern 'dtyp'; did you mean d"),
    ],
    ids=lambda x: str(x)[:20],
)
def test_what_does_not_fit_is_said(lenet, options, message):
    with pytest.raises(ValueError, match=message):
        zoo.export("lenet5_modern", lenet[1], **options)
