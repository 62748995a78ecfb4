"""Conversion from and to PyTorch's names and axes."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.paths import flatten
from zoo.registry import registered
from zoo.weights import from_torch, to_torch
from zoo.weights.torch_format import copy_in_c_order

RNG = np.random.default_rng(0)


def lenet_state_dict(dtype=np.float32) -> dict[str, np.ndarray]:
    """What torch calls the parameters of Caffe's LeNet, with random numbers."""
    shapes = {
        "conv1.weight": (20, 1, 5, 5),
        "conv1.bias": (20,),
        "conv2.weight": (50, 20, 5, 5),
        "conv2.bias": (50,),
        "ip1.weight": (500, 50 * 4 * 4),
        "ip1.bias": (500,),
        "ip2.weight": (10, 500),
        "ip2.bias": (10,),
    }
    return {k: RNG.normal(0, 0.1, s).astype(dtype) for k, s in shapes.items()}


def resnet20_state_dict(shortcut: str = "A") -> dict[str, np.ndarray]:
    """The names and shapes of the widespread torch ResNet-20, with random numbers."""
    out = {}

    def conv_bn(conv, bn, inputs, outputs, size=3):
        fan_in = inputs * size * size
        weight = RNG.normal(0, fan_in**-0.5, (outputs, inputs, size, size))
        out[f"{conv}.weight"] = weight
        out[f"{bn}.weight"] = RNG.uniform(0.5, 1.5, outputs)
        out[f"{bn}.bias"] = RNG.normal(0, 0.1, outputs)
        out[f"{bn}.running_mean"] = RNG.normal(0, 0.1, outputs)
        out[f"{bn}.running_var"] = RNG.uniform(0.5, 1.5, outputs)

    conv_bn("conv1", "bn1", 3, 16)
    inputs = 16
    for stage, outputs in enumerate((16, 32, 64), start=1):
        for block in range(3):
            at = f"layer{stage}.{block}"
            conv_bn(f"{at}.conv1", f"{at}.bn1", inputs, outputs)
            conv_bn(f"{at}.conv2", f"{at}.bn2", outputs, outputs)
            if shortcut == "B" and inputs != outputs:
                conv_bn(f"{at}.shortcut.0", f"{at}.shortcut.1", inputs, outputs, 1)
            inputs = outputs
    out["linear.weight"] = RNG.normal(0, 0.1, (10, 64))
    out["linear.bias"] = RNG.normal(0, 0.1, 10)
    return {key: value.astype(np.float32) for key, value in out.items()}


def assert_same(got: dict, expected: dict) -> None:
    assert sorted(got) == sorted(expected)
    for key, value in expected.items():
        assert got[key].dtype == value.dtype, key
        np.testing.assert_array_equal(got[key], value, err_msg=key)


def test_kernels_are_moved_from_torchs_axes_to_ours():
    state = lenet_state_dict()
    params = from_torch("lenet5_modern", state)["params"]
    kernel = params["backbone"]["conv2"]["kernel"]
    assert kernel.shape == (5, 5, 20, 50)
    assert kernel[1, 2, 3, 4] == state["conv2.weight"][4, 3, 1, 2]
    kernel = params["head"]["ip2"]["kernel"]
    np.testing.assert_array_equal(kernel, state["ip2.weight"].T)


def test_a_dense_layer_after_a_convolution_reads_height_width_channels():
    state = lenet_state_dict()
    kernel = from_torch("lenet5_modern", state)["params"]["backbone"]["ip1"]["kernel"]
    features = RNG.normal(size=(2, 4, 4, 50)).astype(np.float32)
    theirs = features.transpose(0, 3, 1, 2).reshape(2, -1) @ state["ip1.weight"].T
    np.testing.assert_allclose(features.reshape(2, -1) @ kernel, theirs, atol=1e-5)


def test_batch_norm_goes_to_params_and_batch_stats():
    state = resnet20_state_dict()
    flat = flatten(from_torch("cifar_resnet20", state))
    ours, theirs = "backbone/stage2/block1/bn1", "layer2.0.bn1"
    pairs = {
        f"params/{ours}/scale": f"{theirs}.weight",
        f"params/{ours}/bias": f"{theirs}.bias",
        f"batch_stats/{ours}/mean": f"{theirs}.running_mean",
        f"batch_stats/{ours}/var": f"{theirs}.running_var",
    }
    for path, key in pairs.items():
        np.testing.assert_array_equal(flat[path], state[key])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
def test_a_state_dict_comes_back_bit_by_bit(dtype):
    state = lenet_state_dict(dtype)
    assert_same(to_torch("lenet5_modern", from_torch("lenet5_modern", state)), state)


@pytest.mark.parametrize(
    "name", [n for n in zoo.list_models() if zoo.get_spec(n).params < 1e6]
)
def test_variables_of_each_small_model_come_back_bit_by_bit(name):
    pre = zoo.get_spec(name).preprocess
    images = jnp.zeros((1, *pre.shape))
    shapes = jax.eval_shape(zoo.build(name).init, jax.random.key(0), images)
    variables = jax.tree.map(
        lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32), shapes
    )
    state = to_torch(name, variables)
    assert len(state) == len(jax.tree.leaves(variables))
    assert_same(flatten(from_torch(name, state)), flatten(variables))


def test_arrays_that_torch_has_no_layer_for_keep_name_and_axes():
    _, variables = zoo.create("lenet5")
    state = to_torch("lenet5", variables)
    backbone = variables["params"]["backbone"]
    np.testing.assert_array_equal(state["c3.kernel"], backbone["c3"]["kernel"])
    np.testing.assert_array_equal(
        state["s2.coefficient"], backbone["s2"]["coefficient"]
    )
    np.testing.assert_array_equal(state["f6.weight"], backbone["f6"]["kernel"].T)


def test_one_error_lists_missing_unexpected_and_shapes():
    state = lenet_state_dict()
    del state["ip1.bias"]
    state["conv9.weight"] = np.zeros((1, 2), np.float32)
    state["conv1.weight"] = np.zeros((20, 3, 5, 5), np.float32)
    state["conv2.bias"] = np.zeros(50, np.int64)
    with pytest.raises(ValueError, match="lenet5_modern: the state dict") as error:
        from_torch("lenet5_modern", state)
    lines = [line.strip() for line in str(error.value).splitlines()]
    assert lines[1:] == [
        "missing (1): ip1.bias [500]",
        "unexpected (1): conv9.weight [1, 2]",
        "other shape (1): conv1.weight is [20, 3, 5, 5], the network needs "
        "[20, 1, 5, 5]",
        "not floating point (1): conv2.bias is int64",
    ]


def test_long_lists_are_cut_and_counted():
    with pytest.raises(ValueError, match=r"missing \(97\)") as error:
        from_torch("cifar_resnet20", {})
    assert str(error.value).endswith("; and 87 more")
    assert str(error.value).count(";") == 10


def test_weights_for_modules_that_the_network_lacks_are_unexpected():
    state = resnet20_state_dict("B")
    with pytest.raises(ValueError, match=r"unexpected \(10\): layer2.0.shortcut.0"):
        from_torch("cifar_resnet20", state)
    flat = flatten(from_torch("cifar_resnet20", state, shortcut="B"))
    kernel = flat["params/backbone/stage2/block1/shortcut_conv/kernel"]
    assert kernel.shape == (1, 1, 16, 32)


def test_what_torch_adds_to_the_names_is_removed():
    state = resnet20_state_dict()
    wrapped = {f"module.{key}": value for key, value in state.items()}
    wrapped["module.bn1.num_batches_tracked"] = np.array(7)
    variables = from_torch("cifar_resnet20", wrapped)
    assert_same(to_torch("cifar_resnet20", variables), state)
    state["module.linear.bias"] = state.pop("linear.bias")
    with pytest.raises(ValueError, match=r"unexpected \(1\): module.linear.bias"):
        from_torch("cifar_resnet20", state)


def test_other_names_are_taken_and_dense_layers_that_are_convolutions():
    spec, state = zoo.get_spec("lenet5_modern"), lenet_state_dict()
    alias = {"ip1": "pre_logits.fc1", "ip2": "head.fc"}
    rules = tuple(
        dataclasses.replace(rule, alias=alias.get(rule.key))
        for rule in spec.torch_rules(zoo.build("lenet5_modern"))
    )
    spec = dataclasses.replace(spec, torch_rules=lambda model: rules)
    other = dict(state)
    for key, name in alias.items():
        other[f"{name}.bias"] = other.pop(f"{key}.bias")
        other[f"{name}.weight"] = other.pop(f"{key}.weight")
    other["pre_logits.fc1.weight"] = state["ip1.weight"].reshape(500, 50, 4, 4)
    with registered(spec):
        assert_same(
            flatten(from_torch("lenet5_modern", other)),
            flatten(from_torch("lenet5_modern", state)),
        )
    other["head.fc.weight"] = state["ip2.weight"].reshape(10, 500, 1, 1)[..., 0]
    words = r"ip2.weight is \[10, 500, 1\], the network"
    with registered(spec), pytest.raises(ValueError, match=words):
        from_torch("lenet5_modern", other)


@pytest.mark.parametrize("shape", [(), (5,), (70, 131), (65, 3, 2, 130), (1, 64, 3, 3)])
def test_copying_by_tiles_copies_everything(shape):
    array = RNG.normal(size=shape)
    for axes in itertools.permutations(range(len(shape))):
        copy = copy_in_c_order(array.transpose(axes))
        np.testing.assert_array_equal(copy, array.transpose(axes))
        assert copy.flags.c_contiguous
        assert copy.base is None


def test_number_of_classes_follows_from_the_head_and_may_not_contradict_it():
    state = lenet_state_dict()
    state["ip2.weight"], state["ip2.bias"] = np.ones((3, 500)), np.ones(3)
    variables = from_torch("lenet5_modern", state)
    assert variables["params"]["head"]["ip2"]["bias"].shape == (3,)
    assert to_torch("lenet5_modern", variables)["ip2.bias"].shape == (3,)
    with pytest.raises(
        ValueError, match=r"ip2.bias is \[3\], the network needs \[10\]"
    ):
        from_torch("lenet5_modern", state, num_classes=10)
    del state["ip2.weight"], state["ip2.bias"]
    assert "head" not in from_torch("lenet5_modern", state, num_classes=0)["params"]
    with pytest.raises(ValueError, match=r"missing \(2\): ip2"):
        from_torch("lenet5_modern", state)


def test_the_result_does_not_share_memory_with_the_source():
    state = lenet_state_dict()
    variables = from_torch("lenet5_modern", state)
    bias = variables["params"]["head"]["ip2"]["bias"].copy()
    state["ip2.bias"] += 1
    np.testing.assert_array_equal(variables["params"]["head"]["ip2"]["bias"], bias)


def test_something_that_is_no_tensor_is_named():
    with pytest.raises(ValueError, match="'epoch' must be a tensor, got str"):
        from_torch("lenet5_modern", {**lenet_state_dict(), "epoch": "12"})


def test_torch_tensors_are_read_even_in_bfloat16():
    torch = pytest.importorskip("torch")
    state = lenet_state_dict(jnp.bfloat16)
    tensors = {
        key: torch.nn.Parameter(torch.tensor(value.astype(np.float32)).bfloat16())
        for key, value in state.items()
    }
    variables = from_torch("lenet5_modern", tensors)
    assert_same(to_torch("lenet5_modern", variables), state)


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_resnet20_computes_what_torch_computes(shortcut):
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    state = resnet20_state_dict(shortcut)
    tensors = {key: torch.tensor(value) for key, value in state.items()}

    def conv_bn(x, conv, bn, stride=1):
        weight = tensors[f"{conv}.weight"]
        x = f.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        names = ("running_mean", "running_var", "weight", "bias")
        return f.batch_norm(x, *(tensors[f"{bn}.{name}"] for name in names))

    def forward(x):
        x = f.relu(conv_bn(x, "conv1", "bn1"))
        for stage in (1, 2, 3):
            for block in range(3):
                at = f"layer{stage}.{block}"
                stride = 2 if stage > 1 and block == 0 else 1
                y = f.relu(conv_bn(x, f"{at}.conv1", f"{at}.bn1", stride))
                y = conv_bn(y, f"{at}.conv2", f"{at}.bn2")
                if stride == 2 and shortcut == "B":
                    x = conv_bn(x, f"{at}.shortcut.0", f"{at}.shortcut.1", stride)
                elif stride == 2:
                    pad = x.shape[1] // 2
                    x = f.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, pad, pad))
                x = f.relu(x + y)
        x = x.mean((2, 3))
        return f.linear(x, tensors["linear.weight"], tensors["linear.bias"])

    images = RNG.normal(size=(2, 32, 32, 3)).astype(np.float32)
    theirs = forward(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    variables = from_torch("cifar_resnet20", state, shortcut=shortcut)
    model = zoo.build("cifar_resnet20", shortcut=shortcut)
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(model.apply)(variables, images)
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_lenet_computes_what_torch_computes():
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    state = lenet_state_dict()
    t = {key: torch.tensor(value) for key, value in state.items()}
    images = RNG.normal(size=(2, 28, 28, 1)).astype(np.float32)
    x = torch.tensor(images).permute(0, 3, 1, 2)
    x = f.max_pool2d(f.conv2d(x, t["conv1.weight"], t["conv1.bias"]), 2)
    x = f.max_pool2d(f.conv2d(x, t["conv2.weight"], t["conv2.bias"]), 2)
    x = f.relu(f.linear(x.flatten(1), t["ip1.weight"], t["ip1.bias"]))
    theirs = f.linear(x, t["ip2.weight"], t["ip2.bias"]).numpy()
    with jax.default_matmul_precision("highest"):
        model = zoo.build("lenet5_modern")
        ours = model.apply(from_torch("lenet5_modern", state), images)
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
