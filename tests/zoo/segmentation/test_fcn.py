"""FCN on a narrow VGG-16: crops, upsampling, weights of classifiers, conversion."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.ops.bilinear import interpolate
from zoo.paths import flatten, unflatten
from zoo.segmentation.fcn import AT_ONCE, LAST, SKIPS
from zoo.segmentation.segmenter import ConvTransposed, bilinear
from zoo.summary import abstract_variables, list_endpoints
from zoo.transfer import graft, replace_head
from zoo.weights import from_torch, to_torch
from zoo.weights.torch_format import list_torch_shapes

STRIDES = (32, 16, 8)
SHAPE = (40, 61, 3)


NARROW = dict(widths=(4, 4, 8, 8, 8), dense=16)


def build(name, **options):
    return zoo.build(name, **NARROW, **options)


def make_variables(name, shape=SHAPE, **options):
    """Random variables, without an initialization that takes seconds to compile."""
    model = build(name, **options)
    shapes = flatten(abstract_variables(model, shape))
    random = np.random.default_rng(0)
    filled = {
        path: random.normal(size=leaf.shape).astype(np.float32)
        * np.float32(1 / np.sqrt(max(np.prod(leaf.shape[:-1]), 1)))
        for path, leaf in shapes.items()
    }
    return model, unflatten(filled)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 7, 16])
def test_bilinear_kernels_are_those_of_caffes_filler(kernel):
    factor = (kernel + 1) // 2
    center = factor - 1 if kernel % 2 else factor - 0.5
    expected = np.zeros((kernel, kernel, 3, 3))
    for i in range(kernel):
        for j in range(kernel):
            value = (1 - abs(i - center) / factor) * (1 - abs(j - center) / factor)
            expected[i, j] = value * np.eye(3)
    found = bilinear(jax.random.key(0), (kernel, kernel, 3, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("stride", "offset"), [(2, 0), (2, 3), (8, 31), (16, 27)])
def test_upsampling_without_a_kernel_is_that_with_a_bilinear_one(stride, offset):
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 3)).astype(np.float32)
    layer = ConvTransposed(
        3, 2 * stride, stride, offset, use_bias=False, kernel_init=bilinear
    )
    size = (3 * stride + 1, 5 * stride - 2)
    expected, variables = layer.init_with_output(jax.random.key(0), x, size)
    assert {*flatten(variables)} == {"params/kernel"}
    found = interpolate(jnp.asarray(x), stride, size, offset)
    assert found.shape == (2, *size, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_transposed_convolution_gives_all_where_no_size_is_asked_for():
    layer = ConvTransposed(4, 3, 2, offset=1)
    x = jnp.ones((1, 5, 6, 2))
    y, variables = layer.init_with_output(jax.random.key(0), x)
    assert y.shape == (1, 2 * 4 + 3 - 1, 2 * 5 + 3 - 1, 4)
    assert flatten(variables)["params/kernel"].shape == (3, 3, 2, 4)
    assert flatten(variables)["params/bias"].shape == (4,)


@pytest.mark.parametrize("stride", STRIDES)
def test_crops_put_each_pixel_where_it_was(stride):
    # Where pixel i of a map is in the image: `scale * i + shift`.
    # conv1_1 has 100 pixels of padding and a window of 3.
    pool = {k: (2**k, (2**k - 1) / 2 - 99) for k in (3, 4, 5)}
    scale, shift = pool[5][0], pool[5][1] + 3 * 32  # fc6's window has 3 before it.
    for _, name, offset in SKIPS[stride]:
        # A kernel of 4 doubles: pixel 2 i + 1.5 is where pixel i was.
        scale, shift = scale / 2, shift - 1.5 * scale / 2
        skip_scale, skip_shift = pool[int(name[-1])]
        assert (scale, shift) == (skip_scale, skip_shift + offset * skip_scale)
    assert scale == stride
    shift = shift - (stride - 0.5) + LAST[stride][1]
    assert shift == 0


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("size", [(32, 32), (33, 95), (64, 47), (121, 130), (500, 375)])
def test_masks_have_the_images_size(stride, size):
    found = list_endpoints(build(f"fcn{stride}s_vgg16"), (*size, 3))
    assert found["logits"] == (*size, 21)
    assert [*found][-1] == "logits"


def test_sizes_of_the_maps_are_the_released_ones():
    found = list_endpoints(build("fcn8s_vgg16"), (500, 500, 3))
    sizes = "conv1_1 698 pool1 349 pool2 175 pool3 88 pool4 44 pool5 22 fc6 16 fc7 16 "
    sizes += "score_fr 16 upscore2 34 fuse_pool4 34 upscore_pool4 70 fuse_pool3 70"
    names, numbers = sizes.split()[::2], sizes.split()[1::2]
    assert [found[name][:2] for name in names] == [(int(n),) * 2 for n in numbers]


def test_a_network_starts_with_scores_of_zero_and_bilinear_kernels(cheap_jit):
    model = build("fcn8s_vgg16")
    variables = cheap_jit(model.init)(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    head = flatten(variables["params"]["head"])
    for path, leaf in head.items():
        if path.startswith("score"):
            assert not leaf.any(), path
        else:
            expected = bilinear(jax.random.key(1), leaf.shape)
            np.testing.assert_array_equal(leaf, expected)
    assert {*head} == {
        *(
            f"score_{s}/{k}"
            for s in ("fr", "pool4", "pool3")
            for k in ("kernel", "bias")
        ),
        *("upscore2/kernel", "upscore_pool4/kernel"),
    }
    # Of the source, the deviation 0.1.
    assert np.std(variables["params"]["backbone"]["conv5_3"]["kernel"]) == (
        pytest.approx(0.1, rel=0.1)
    )


def test_skips_are_scaled_where_all_are_trained_at_once(cheap_jit):
    model, variables = make_variables("fcn8s_vgg16")
    image = np.random.default_rng(1).normal(size=(1, *SHAPE)).astype(np.float32)
    at_once = build("fcn8s_vgg16", at_once=True)
    run = cheap_jit(partial(model.apply, method="endpoints"))
    found = cheap_jit(partial(at_once.apply, method="endpoints"))(variables, image)
    params = flatten(variables["params"])
    for pool, scale in (("pool4", 1e-2), ("pool3", 1e-4)):
        assert AT_ONCE[pool] == scale
        path = f"head/score_{pool}/kernel"
        params[path] = params[path] * np.float32(scale)
    expected = run({"params": unflatten(params)}, image)
    np.testing.assert_allclose(
        found["logits"], expected["logits"], rtol=1e-4, atol=1e-5
    )
    plain = run(variables, image)
    assert np.abs(plain["logits"] - found["logits"]).max() > 0.1


@pytest.mark.parametrize("name", ["fcn32s_vgg16", "fcn8s_vgg16"])
def test_a_classifiers_weights_go_straight_in(name, cheap_jit):
    classifier, source = make_variables("vgg16", (224, 224, 3))
    model, target = make_variables(name)
    grafted = graft(target, source, keep=("head/**",))
    of_source, of_target = (flatten(v["params"]["backbone"]) for v in (source, grafted))
    assert {*of_source} == {*of_target}
    for path, leaf in of_source.items():
        np.testing.assert_array_equal(leaf, of_target[path])
    # The dense layers, turned into convolutions, compute what they did.
    backbone = model.backbone.clone(first_padding=1)
    images = np.random.default_rng(2).normal(size=(2, 224, 224, 3)).astype(np.float32)
    params = {"params": grafted["params"]["backbone"]}
    found = cheap_jit(backbone.apply)(params, images)["fc7"]
    expected = cheap_jit(partial(classifier.apply, method="endpoints"))(source, images)
    assert found.shape == (2, 1, 1, 16)
    np.testing.assert_allclose(found[:, 0, 0], expected["fc7"], rtol=1e-4, atol=1e-5)


def test_each_network_starts_from_the_one_before():
    sources = [make_variables(f"fcn{stride}s_vgg16")[1] for stride in STRIDES]
    graft(sources[1], sources[0], keep=("head/upscore2/*", "head/score_pool4/*"))
    keep = ("head/upscore_pool4/*", "head/score_pool3/*")
    graft(sources[2], sources[1], keep=keep)
    with pytest.raises(ValueError, match="not filled: params/head/score_pool4/bias"):
        graft(sources[1], sources[0], keep=("head/upscore2/*",))


def test_released_names_and_axes():
    name, options = "fcn8s_vgg16", dict(upsampling="learnt")
    shapes = list_torch_shapes(name, **options, **NARROW)
    assert shapes["conv1_1.weight"] == (4, 3, 3, 3)
    assert shapes["score_pool4.weight"] == (21, 8, 1, 1)
    assert shapes["upscore_pool4.weight"] == (21, 21, 4, 4)
    assert "upscore8.weight" not in list_torch_shapes(name, **NARROW)
    _, variables = make_variables(name, **options)
    state = to_torch(name, variables, **options, **NARROW)
    kernel = variables["params"]["head"]["upscore2"]["kernel"]
    assert state["upscore2.weight"][3, 5, 1, 2] == kernel[1, 2, 3, 5]
    back = from_torch(name, state, **options, **NARROW)
    for path, leaf in flatten(back).items():
        np.testing.assert_array_equal(leaf, flatten(variables)[path], err_msg=path)
    # As convolutions, as Caffe's; and what is fixed here has no place.
    for layer, window in (("fc6", (8, 7, 7)), ("fc7", (16, 1, 1))):
        key = f"{layer}.weight"
        state[key] = state[key].reshape(16, *window)
    back = flatten(from_torch(name, state, **NARROW))
    assert "params/head/upscore8/kernel" not in back
    for path in ("params/backbone/fc6/kernel", "params/backbone/fc7/kernel"):
        np.testing.assert_array_equal(back[path], flatten(variables)[path])


def test_the_head_is_exchanged_in_every_layer_that_has_classes():
    model, variables = make_variables("fcn16s_vgg16")
    shared = {0: 0, 3: 15}
    new_model, new = replace_head(
        model, variables, 5, key=jax.random.key(0), shared=shared
    )
    abstract = flatten(abstract_variables(new_model, SHAPE))
    assert {k: v.shape for k, v in abstract.items()} == {
        k: v.shape for k, v in flatten(new).items()
    }
    old, found = variables["params"]["head"], new["params"]["head"]
    for layer in ("score_fr", "score_pool4"):
        kernel, bias = found[layer]["kernel"], found[layer]["bias"]
        np.testing.assert_array_equal(kernel[..., 3], old[layer]["kernel"][..., 15])
        np.testing.assert_array_equal(bias[3], old[layer]["bias"][15])
        assert not kernel[..., [1, 2, 4]].any()
        assert not bias[jnp.array([1, 2, 4])].any()
    kernel = np.array(found["upscore2"]["kernel"])
    before = old["upscore2"]["kernel"]
    np.testing.assert_array_equal(kernel[:, :, 0, 3], before[:, :, 0, 15])
    expected = np.array(bilinear(jax.random.key(0), kernel.shape))
    kernel[:, :, [[0], [3]], [0, 3]] = expected[:, :, [[0], [3]], [0, 3]] = 0
    np.testing.assert_array_equal(kernel, expected)
    assert found["upscore2"]["kernel"].dtype == jnp.float32


def test_every_part_that_is_learnt_gets_a_gradient(cheap_jit):
    model, variables = make_variables("fcn8s_vgg16", upsampling="learnt")
    features = {
        "fc7": np.ones((1, 1, 2, 16), np.float32),
        "pool4": np.ones((1, 15, 15, 8), np.float32),
        "pool3": np.ones((1, 30, 30, 8), np.float32),
    }

    def loss(head):
        out = model.head.apply({"params": head}, features, (30, 40))
        return jnp.square(out["logits"]).sum()

    gradients = cheap_jit(jax.grad(loss))(variables["params"]["head"])
    assert all(leaf.any() for leaf in flatten(gradients).values())
    assert "upscore8/kernel" in flatten(gradients)


FEATURES = {
    name: jax.ShapeDtypeStruct((1, size, size, 16), jnp.bfloat16)
    for name, size in dict(fc7=1, pool4=15, pool3=30, stage3=8, stage4=8).items()
}


def heads_of(name, **options):
    """Traces the heads alone: their outputs and their parameters' shapes."""
    options |= {"aux": True} if "aux" in zoo.list_options(name) else {}
    found = {}
    for field, head in zoo.build(name, **options).heads().items():
        run = partial(head.init_with_output, jax.random.key(0), size=(40, 40))
        out, variables = jax.eval_shape(run, FEATURES)
        found[field] = head, out, flatten(variables["params"])
    return found


NAMES = ("fcn32s_vgg16", "fcn16s_vgg16", "fcn8s_vgg16", "fcn_resnet50")
NAMES += ("pspnet_resnet50",)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_float32_in_bfloat16(name):
    for _, out, params in heads_of(name, dtype=jnp.bfloat16).values():
        assert out["logits"].dtype == jnp.float32
        assert out["logits"].shape == (1, 40, 40, zoo.get_spec(name).num_classes)
        assert {leaf.dtype for leaf in params.values()} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", NAMES)
def test_class_outputs_are_all_that_depend_on_the_number_of_classes(name):
    few, many = heads_of(name, num_classes=3), heads_of(name, num_classes=7)
    assert [*few] == (["head"] if "vgg" in name else ["head", "aux_head"])
    for field, (head, _, params) in few.items():
        others = many[field][2]
        differ = {path for path in params if params[path].shape != others[path].shape}
        layers = {path.split("/")[0] for path in differ}
        assert layers == {*head.class_outputs()}


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("fcn8s_vgg16", dict(upsampling="fast"), "upsampling must be one of .*'paper'"),
        ("fcn8s_vgg16", dict(num_classes=-1), "num_classes must be 0 .* got -1"),
        ("fcn_resnet50", dict(output_stride=4), "output_stride must be 8, 16 or 32"),
        ("fcn_resnet50", dict(num_classes=-1), "num_classes must be 0 .* got -1"),
        ("pspnet_resnet50", dict(num_classes=-1), "num_classes must be 0 .* got -1"),
        ("pspnet_resnet50", dict(init="x"), "init='x' is unknown"),
    ],
)
def test_wrong_options_are_named(name, options, words):
    with pytest.raises(ValueError, match=words):
        zoo.build(name, **options)


@pytest.mark.parametrize(
    ("name", "side"),
    [("fcn32s_vgg16", 32), ("fcn8s_vgg16", 8), ("pspnet_resnet50", 8)],
)
def test_wrong_images_are_named(name, side):
    model = zoo.build(name)
    variables = abstract_variables(model, SHAPE)

    def trace(shape, dtype=jnp.float32):
        images = jax.ShapeDtypeStruct(shape, dtype)
        return jax.eval_shape(model.apply, variables, images)

    assert trace((2, side, side, 3)).shape[:3] == (2, side, side)
    words = rf"{name} takes images of {side} x {side} .* got \[2, {side - 1}, 40, 3\]"
    with pytest.raises(ValueError, match=words):
        trace((2, side - 1, 40, 3))
    with pytest.raises(ValueError, match="preprocessed floating point, got uint8"):
        trace((2, 40, 40, 3), jnp.uint8)
    with pytest.raises(ValueError, match=rf"{name} takes .* images\[None\]"):
        trace((40, 40, 3))
    with pytest.raises(ValueError, match=r"the images have 1 channel.* takes 3"):
        trace((2, 40, 40, 1))
