"""What `verify` finds: mistakes, wherever they are; and the certificate it writes."""

import dataclasses
import hashlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import zoo
from zoo.__main__ import main
from zoo.classification import resnet
from zoo.classification.alexnet import alexnet_convolutions
from zoo.layers import BatchNorm, Conv
from zoo.ops.normalization import local_response_norm
from zoo.registry import registered
from zoo.spec import TorchRule
from zoo.verify import Check, verify
from zoo.verify.deterministic import BRANCH_GAIN, fill, make_images, make_labels
from zoo.verify.parity import deterministic_state
from zoo.verify.summaries import load_summaries, measure, save_summaries, summarize
from zoo.verify.torchvision_live import build_torchvision
from zoo.verify.verification import golden_path
from zoo.weights import from_torch, save_safetensors
from zoo.weights.trained import find_trained

SMALL = "cifar_resnet20"


def with_facts(name, **facts):
    return registered(dataclasses.replace(zoo.get_spec(name), **facts))


def with_variant(name, **changes):
    """Registers a network whose backbone is another variant."""
    build = zoo.get_spec(name).build

    def build_other(**options):
        model = build(**options)
        variant = model.backbone.variant._replace(**changes)
        return model.clone(backbone=model.backbone.clone(variant=variant))

    return with_facts(name, build=build_other)


def with_torchs_flattening():
    """Registers a LeNet whose dense layer reads rows and columns before channels."""
    rules = zoo.get_spec("lenet5_modern").torch_rules

    def flat(model):
        return [TorchRule(rule.module, rule.key) for rule in rules(model)]

    return with_facts("lenet5_modern", torch_rules=flat)


def failed(certificate):
    return [check.name for check in certificate.checks if not check.passed]


# Mistakes that networks have been written with.


def changed(kind, change, method="__call__"):
    """Makes a mistake in a method of all modules of a kind, by `change(call, x, m)`."""

    def interceptor(call, args, options, context):
        if isinstance(context.module, kind) and context.method_name == method:
            rest = args[1:]
            return change(lambda x: call(x, *rest, **options), args[0], context.module)
        return call(*args, **options)

    return nn.intercept_methods(interceptor)


@pytest.mark.apart
def test_padding_on_another_side_is_found(cheap_jit):
    def behind(call, x, conv):
        # At stride 2 and an even size, "SAME" puts all of the padding behind.
        return call(jnp.roll(x, -1, (1, 2)) if conv.stride in (2, (2, 2)) else x)

    with changed(Conv, behind):
        names = failed(verify(SMALL, jit=cheap_jit))
    assert names == ["stage2", "stage3", "pool", "logits"]


@pytest.mark.apart
def test_another_scale_is_found(cheap_jit):
    with changed(BatchNorm, lambda call, x, _: call(x) * 1.001):
        assert failed(verify(SMALL, jit=cheap_jit))[0] == "stem"


@pytest.mark.apart
def test_zeros_on_another_side_are_found(cheap_jit):
    def behind(call, x, _):
        y = call(x)
        return jnp.roll(y, -((y.shape[-1] - x.shape[-1]) // 2), -1)

    with changed(resnet.Block, behind, "project"):
        assert failed(verify(SMALL, jit=cheap_jit))[0] == "stage2"


def test_another_order_of_flattening_is_found(cheap_jit):
    with with_torchs_flattening():
        assert failed(verify("lenet5_modern", jit=cheap_jit)) == ["ip1", "logits"]


@pytest.mark.apart
def test_another_constant_of_the_normalization_is_found(cheap_jit):
    normalize = partial(local_response_norm, alpha=1e-4 / 5)
    convolutions = partial(alexnet_convolutions, normalize=normalize)
    with with_variant("alexnet", convolutions=convolutions):
        names = failed(verify("alexnet", jit=cheap_jit))
    assert names[0] == "norm1"
    assert "conv1" not in names


@pytest.mark.apart
def test_three_by_three_for_five_by_five_is_found():
    with with_variant("googlenet", large=3):
        assert failed(verify("googlenet"))[0] == "inception_3a"


@pytest.mark.apart
def test_another_momentum_is_found(cheap_jit):
    build = partial(zoo.get_spec(SMALL).build, momentum=0.1)
    with with_facts(SMALL, build=build):
        names = failed(verify(SMALL, training="float32", jit=cheap_jit))
    assert names[0] == "statistics"
    assert {name.rsplit(".")[-1] for name in names[1:]} <= {
        "running_mean",
        "running_var",
    }


@pytest.mark.apart
def test_a_biased_variance_is_found(cheap_jit):
    def biased(call, x, norm):
        before = norm.get_variable("batch_stats", "var")
        y = call(x)
        if before is None:  # The variables are initialized.
            return y
        running = 0.9 * before + 0.1 * jnp.var(x, (0, 1, 2))
        norm.put_variable("batch_stats", "var", running)
        return y

    with changed(BatchNorm, biased):
        names = failed(verify(SMALL, training="float32", jit=cheap_jit))
    assert "statistics" in names
    assert not [name for name in names if name.endswith("running_mean")]


@pytest.mark.apart
def test_a_gradient_that_stops_is_found(cheap_jit):
    def stopped(call, x, _):
        return jax.lax.stop_gradient(call(x))

    with changed(resnet.Block, stopped, "project"):
        names = failed(verify(SMALL, training="float32", jit=cheap_jit))
    assert names[0] == "gradients"
    assert not {"loss", "statistics"} & {*names}


# Summaries.


def test_one_wrong_value_anywhere_is_found():
    rng = np.random.default_rng(0)
    array = rng.normal(size=(2, 56, 56, 64)).astype(np.float32)
    good = summarize({"map": array}, samples=4, sums=8)
    for place in rng.integers(array.size, size=20):
        wrong = array.copy()
        wrong.flat[place] += 0.1
        found = summarize({"map": wrong}, samples=4, sums=8)
        # Its distance, 0.1, in units of the norm.
        expected = 0.1 / np.linalg.norm(array)
        assert measure(found, good)["map"] == pytest.approx(expected, rel=0.3)


def test_corners_and_edges_are_sampled():
    array = np.zeros((2, 99, 99, 3), np.float32)
    array[:, 1:-1, 1:-1] = 1
    array[:, ::98, ::98] = 2
    (values,) = summarize({"map": array}, samples=64, sums=1).samples
    counts = [int((values == kind).sum()) for kind in (2, 0, 1)]
    assert counts == pytest.approx([16, 32, 16], abs=4)


def test_a_gradient_of_zero_is_measured_by_its_layer():
    exact = {"bn.bias": np.full(4, 1e-16), "bn.weight": np.ones(4)}
    rounded = {"bn.bias": np.full(4, 1e-8), "bn.weight": np.ones(4)}
    found, expected = (summarize(a, samples=4, sums=2) for a in (rounded, exact))
    assert measure(found, expected)["bn.bias"] > 1e7
    assert measure(found, expected, by_layer=True)["bn.bias"] < 2e-8


def test_what_is_no_number_is_never_right():
    ones, nan = np.ones(9), np.full(9, np.nan)
    found = summarize({"x": nan}, samples=2, sums=2)
    assert measure(found, summarize({"x": ones}, samples=2, sums=2)) == {"x": np.inf}
    assert not Check("x", (9,), float("nan"), 1.0).passed


def test_other_arrays_are_named():
    arrays = {"a": np.ones(3), "b": np.ones(3), "c": np.ones(3)}
    others = {"a": np.ones(3), "c": np.ones(4), "d": np.ones(3)}
    found, expected = (summarize(a, samples=1, sums=1) for a in (others, arrays))
    with pytest.raises(ValueError, match=r"missing \['b'\], unexpected \['d'\].*c is"):
        measure(found, expected)


def test_summaries_are_kept_as_they_are(tmp_path):
    table = summarize({"a": np.arange(9.0), "b.c": np.ones((2, 3))}, samples=3, sums=2)
    save_summaries(tmp_path / "x.npz", {"part": table}, {"model": "some"})
    sections, facts = load_summaries(tmp_path / "x.npz")
    assert facts == {"model": "some"}
    for field in dataclasses.fields(table):
        before, after = (getattr(t, field.name) for t in (table, sections["part"]))
        assert np.all(np.asarray(before, object) == np.asarray(after, object))


# Numbers that golden files depend on.


def test_deterministic_numbers_stay_the_same():
    digest = hashlib.sha256()
    digest.update(fill("layer1.0.conv1.weight", (4, 3, 3, 3)).tobytes())
    for kind in ("weight", "bias", "running_mean", "running_var"):
        digest.update(
            fill(f"layer1.0.bn2.{kind}", (7,), branch_gain=BRANCH_GAIN).tobytes()
        )
    digest.update(fill("conv1_prelu.weight", (7,)).tobytes())
    for name in ("alexnet", "lenet5_modern"):
        digest.update(make_images(zoo.get_spec(name).preprocess).tobytes())
    digest.update(make_labels(1000).tobytes())
    assert digest.hexdigest()[:16] == "5c8913379671f85a"


def test_a_kernel_keeps_the_size_of_a_signal():
    kernel = fill("conv.weight", (64, 32, 3, 3))
    assert kernel.std() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.02)
    assert abs(kernel.mean()) < 0.002
    damped = fill("layer1.0.bn2.weight", (999,), branch_gain=BRANCH_GAIN)
    plain = fill("layer1.0.bn2.weight", (999,))
    np.testing.assert_allclose(damped, plain * 0.3, rtol=1e-6)
    assert (plain.min(), plain.max()) == pytest.approx((0.5, 1.5), abs=0.01)


# The command, and weights of a file.


def test_command_prints_the_certificate(capsys):
    main(["verify", "lenet5_modern"])
    out = capsys.readouterr().out
    digest = hashlib.sha256(golden_path("lenet5_modern").read_bytes()).hexdigest()
    assert digest in out
    assert "float64" in out
    assert "2x8x8x50" in out
    assert out.endswith("passed\n")


def test_command_fails_where_a_tolerance_is_exceeded(capsys):
    with with_torchs_flattening(), pytest.raises(SystemExit) as stop:
        main(["verify", "lenet5_modern"])
    assert stop.value.code == 1
    assert "FAILED: ip1" in capsys.readouterr().out


def test_a_network_without_golden_file_is_named():
    with pytest.raises(FileNotFoundError, match="lenet5 has no golden file"):
        verify("lenet5")


def test_unknown_training_type_is_named():
    with pytest.raises(ValueError, match=r"float32.*got 'bfloat16'"):
        verify("lenet5_modern", training="bfloat16")
    with pytest.raises(ValueError, match=r"weights='x\.pth'"):
        verify("lenet5_modern", "x.pth", training="float32")


def save(path, name, state, **facts):
    _, _, card = zoo.create_with_card(name, **facts)
    save_safetensors(path, from_torch(name, state, **facts), card)


def test_weights_are_checked(tmp_path):
    path = tmp_path / "lenet.safetensors"
    save(path, "lenet5_modern", deterministic_state("lenet5_modern"))
    certificate = verify("lenet5_modern", path)
    assert certificate.passed
    assert certificate.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert certificate.notes == (
        "not a file that was published",
        "endpoints were not compared: torchvision has no lenet5_modern",
    )


def test_weights_of_the_package_are_checked():
    path = find_trained("lenet5_modern", "digits")
    certificate = verify("lenet5_modern", "digits")
    assert certificate.passed
    assert certificate.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert certificate.notes[0] == "part of the package"


def test_weights_that_are_not_finite_fail(tmp_path):
    path = tmp_path / "lenet.safetensors"
    state = deterministic_state("lenet5_modern")
    state["conv2.bias"][3] = np.nan
    save(path, "lenet5_modern", state)
    certificate = verify("lenet5_modern", path)
    assert failed(certificate) == ["finite weights"]
    assert "not finite (1): conv2.bias" in str(certificate)


@pytest.mark.apart
def test_weights_are_compared_with_torchvision(tmp_path):
    try:
        build_torchvision("resnet18")
    except ImportError as error:
        pytest.skip(str(error))
    path = tmp_path / "resnet18.safetensors"
    state = deterministic_state("resnet18", branch_gain=BRANCH_GAIN, num_classes=37)
    save(path, "resnet18", state, num_classes=37)
    certificate = verify("resnet18", path)
    assert certificate.passed, f"\n{certificate}"
    assert len(certificate.checks) == 2 + 8
    assert "torchvision 0." in certificate.reference
