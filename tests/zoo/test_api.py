"""The public door, and that its networks are plain JAX: jit, vmap, grad, checkpoint."""

import dataclasses
import functools
import importlib.metadata
import json
from functools import partial

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.nnx.bridge import variables as bridge

import zoo
from zoo.classification.resnet import BasicBlock, resnet
from zoo.paths import flatten
from zoo.registry import registered

resnet8 = partial(
    resnet, block=BasicBlock, blocks=(1, 1, 1), small=True, num_classes=10
)
MODEL = resnet8()
IMAGES = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3])
FLAX = tuple(int(n) for n in importlib.metadata.version("flax").split(".")[:2])


@pytest.fixture(scope="module")
def variables(cheap_jit):
    return cheap_jit(MODEL.init)(jax.random.key(0), IMAGES)


@pytest.fixture(scope="module")
def logits(variables):
    return jax.jit(MODEL.apply)(variables, IMAGES)


def training_loss(params, model, variables):
    logits, new = model.apply(
        {**variables, "params": params}, IMAGES, train=True, mutable=["batch_stats"]
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)
    return losses.mean(), new["batch_stats"]


def assert_same_trees(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_create_follows_the_key():
    model, first = zoo.create("lenet5_modern")
    assert_same_trees(first, zoo.create("lenet5_modern", key=jax.random.key(0))[1])
    other = zoo.create("lenet5_modern", key=jax.random.key(2))[1]
    for path, leaf in flatten(first).items():
        assert (leaf != flatten(other)[path]).any() or path.endswith("bias"), path
    assert type(first) is dict
    images = jnp.zeros((2, 28, 28, 1))
    assert jax.jit(model.apply)(first, images).shape == (2, 10)


@functools.lru_cache
def shapes_of(name, **options):
    model = zoo.build(name, **options)
    pre = zoo.get_spec(name).preprocess
    images = jnp.zeros((2, *pre.shape))
    out, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    return out, flatten(variables)


@pytest.mark.parametrize("name", ["lenet5", "lenet5_modern", "cifar_resnet20"])
def test_the_number_of_classes(name):
    paper = shapes_of(name)
    assert paper[0].shape == (2, 10)
    out, variables = shapes_of(name, num_classes=7)
    assert out.shape == (2, 7)
    assert variables.keys() == paper[1].keys()
    out, variables = shapes_of(name, num_classes=0)
    assert out.shape[0] == 2
    assert out.ndim == 2
    assert {path.split("/")[1] for path in variables} == {"backbone"}


@pytest.mark.parametrize("name", ["lenet5", "lenet5_modern", "cifar_plain20"])
def test_every_path_starts_with_its_part(name):
    paths = shapes_of(name)[1]
    assert {path.split("/")[1] for path in paths} <= {"backbone", "head"}
    # A name such as Conv_0 would be flax's choice, and not public.
    assert not [path for path in paths if "_0" in path or path != path.lower()]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cifar_resnet21", {}, "unknown model 'cifar_resnet21'.*cifar_resnet20"),
        ("swin", {}, "unknown model 'swin'; there are: .*'lenet5'"),
        ("lenet5", {"dtyp": 1}, "unknown option of lenet5 'dtyp'; did you mean dtype"),
        ("cifar_resnet20", {"depth": 56}, "unknown option of cifar_resnet20 'depth'"),
        ("cifar_resnet20", {"shortcut": "D"}, "shortcut must be 'A', 'B' or 'C'"),
        ("lenet5_modern", {"init": "x"}, "init='x' is unknown; choose from"),
        ("lenet5", {"num_classes": -1}, "num_classes must be 0 .* got -1"),
        ("lenet5_modern", {"num_classes": -1}, "num_classes must be 0 .* got -1"),
    ],
)
def test_mistakes_are_named(name, options, words):
    with pytest.raises(ValueError, match=words):
        zoo.create(name, **options)


def test_ones_own_model_is_registered_for_a_while():
    spec = dataclasses.replace(zoo.get_spec("lenet5_modern"), name="lenet5_mine")
    with registered(spec):
        assert "lenet5_mine" in zoo.list_models("lenet5*")
        assert zoo.create_with_card("lenet5_mine")[2].model == "lenet5_mine"
    with pytest.raises(ValueError, match="unknown model 'lenet5_mine'"):
        zoo.create("lenet5_mine")


def test_list_models():
    assert zoo.list_models("lenet*") == ["lenet5", "lenet5_modern"]
    assert len(zoo.list_models("cifar_plain*")) == 5
    assert zoo.list_models("*plain110") == ["cifar_plain110"]
    assert zoo.list_models("nothing*") == []
    assert {*zoo.list_models(task="classification")} < {*zoo.list_models()}
    assert "fcn8s_vgg16" in zoo.list_models(task="segmentation")
    with pytest.raises(
        ValueError, match=r"unknown task 'classificatio'.*classification"
    ):
        zoo.list_models(task="classificatio")


def test_list_options():
    assert zoo.list_options("cifar_resnet20")["shortcut"] == "A"
    assert {*zoo.list_options("lenet5")} == {"dtype", "param_dtype"}


def test_describe_has_the_numbers():
    text = zoo.describe("cifar_resnet20")
    for part in (
        "He, Zhang, Ren, Sun",
        "269,722",
        "40,551,040",
        "8.75 %",
        "91.73 %",
        "stage3 8x8x64",
        "shortcut=A",
        "dtype=float32",
        "backbone/stage2/block1/conv1",
        "4,608",
    ):
        assert part in text, part
    assert "272,474" in zoo.describe("cifar_resnet20", shortcut="B")
    assert "60,000" in zoo.describe("lenet5")
    assert "326,520" in zoo.describe("lenet5")


def test_the_card_of_new_variables_is_json():
    card = zoo.create_with_card("lenet5", num_classes=3, dtype=jnp.bfloat16)[2]
    assert (card.model, card.num_classes) == ("lenet5", 3)
    assert card.preprocess == zoo.get_spec("lenet5").preprocess
    assert json.loads(json.dumps(card.to_json()))["overrides"] == {"dtype": "bfloat16"}
    out = shapes_of("lenet5", **card.overrides)[0]
    assert out.dtype == jnp.float32


def test_features_are_the_endpoints(variables, logits):
    names = ["pool", "stage1"]
    found = zoo.features(MODEL, variables, IMAGES, names)
    assert [*found] == names
    every = MODEL.apply(variables, IMAGES, method="endpoints")
    for name in names:
        np.testing.assert_array_equal(found[name], every[name])
    np.testing.assert_allclose(every["logits"], logits, rtol=1e-4, atol=1e-5)
    assert [*zoo.features(MODEL, variables, IMAGES, "stem")] == ["stem"]
    with pytest.raises(ValueError, match=r"unknown endpoint 'stage4'; did you .*stage"):
        zoo.features(MODEL, variables, IMAGES, ["stage4"])
    with pytest.raises(ValueError, match=r"model='lenet5' must be a network, as zoo"):
        zoo.features("lenet5", variables, IMAGES, "pool")
    with pytest.raises(ValueError, match=r"and no 'params': zoo\.create returns them"):
        zoo.features(MODEL, variables["params"], IMAGES, "pool")


def test_features_within_a_stage(variables):
    found = zoo.features(MODEL, variables, IMAGES, ["stage2/block*", "stage*"])
    blocks = [f"stage2/block{i + 1}" for i in range(MODEL.backbone.blocks[1])]
    assert [*found] == [*blocks, "stage1", "stage2", "stage3"]
    np.testing.assert_array_equal(found[blocks[-1]], found["stage2"])
    larger = jnp.zeros((1, 48, 40, 3))
    assert zoo.features(MODEL, variables, larger, blocks[0])[blocks[0]].shape == (
        *(1, 24, 20),
        found["stage2"].shape[-1],
    )
    with pytest.raises(ValueError, match=r"endpoint 'stage2/block9'; did.*stage2/bl"):
        zoo.features(MODEL, variables, IMAGES, "stage2/block9")


def test_features_in_training_use_the_statistics_of_the_batch(variables):
    images = 5 * IMAGES + 3
    found = zoo.features(MODEL, variables, images, "stem/bn", train=True)["stem/bn"]
    np.testing.assert_allclose(found.mean((0, 1, 2)), 0, atol=1e-4)
    still = zoo.features(MODEL, variables, images, "stem/bn")["stem/bn"]
    assert np.abs(still.mean((0, 1, 2))).max() > 0.1


def test_endpoints_by_name():
    assert [*zoo.list_endpoints("lenet5")] == [*zoo.list_endpoints("lenet5", (32, 32))]
    found = zoo.list_endpoints("resnet18", (64, 96), names=["stage*", "stage2/block1"])
    assert found == {
        "stage1": (16, 24, 64),
        "stage2": (8, 12, 128),
        "stage3": (4, 6, 256),
        "stage4": (2, 3, 512),
        "stage2/block1": (8, 12, 128),
    }
    assert "logits" not in zoo.list_endpoints("lenet5", num_classes=0)
    with pytest.raises(ValueError, match="image_shape=None: Classifier has no"):
        zoo.list_endpoints(MODEL)
    with pytest.raises(ValueError, match=r"image_shape=\(64,\) must be"):
        zoo.list_endpoints("resnet18", (64,))
    with pytest.raises(ValueError, match=r"'width'.* for a model given by name"):
        zoo.list_endpoints(MODEL, (32, 32, 3), width=8)


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("alexnet", [("norm1", 4, 96), ("norm2", 8, 256), ("conv5", 16, 256)]),
        ("resnet18", [("stem", 2, 64), ("stage1", 4, 64), ("stage2", 8, 128)]),
        ("unet", [("down1", 1, 64), ("down2", 2, 128), ("down3", 4, 256)]),
        ("segnet_basic", [("conv1", 1, 64), ("conv2", 2, 64), ("conv3", 4, 64)]),
        ("ssd96_small", [("stage1", 2, 16), ("stage2", 4, 48), ("stage3", 8, 96)]),
    ],
)
def test_the_pyramid_has_the_last_map_of_each_stride(name, levels):
    found = zoo.list_pyramid(name)
    assert [level[:3] for level in found[:3]] == levels
    shapes = zoo.list_endpoints(name)
    for level in found:
        assert shapes[level.name] == (*level.shape, level.channels)


def test_a_network_without_a_head_gives_its_last_features():
    model, variables = zoo.create("lenet5", num_classes=0)
    assert "head" not in variables["params"]
    images = jnp.zeros((2, 32, 32, 1))
    (last,) = zoo.features(model, variables, images, "f6").values()
    np.testing.assert_array_equal(model.apply(variables, images), last)


def test_what_nobody_asked_for_is_not_computed(variables):
    def flops(name):
        run = jax.jit(lambda v, x: zoo.features(MODEL, v, x, [name]))
        costs = run.lower(variables, IMAGES).compile().cost_analysis()
        return (costs[0] if isinstance(costs, list) else costs)["flops"]

    # MACs per pixel of the input: stem 432, stage 1 4,608, stages 2 and 3 3,456 each.
    assert flops("stage1") < 0.5 * flops("logits")


def test_vmap_over_images_and_over_networks(variables, logits):
    one = lambda image: MODEL.apply(variables, image[None])[0]  # noqa: E731
    got = jax.jit(jax.vmap(one))(IMAGES)
    np.testing.assert_allclose(got, logits, rtol=1e-4, atol=1e-5)
    pair = jax.tree.map(lambda x: jnp.stack([x, x]), variables)
    both = jax.jit(jax.vmap(MODEL.apply, (0, None)))(pair, IMAGES)
    np.testing.assert_allclose(both[1], logits, rtol=1e-4, atol=1e-5)


def test_forward_and_backward_derivatives_agree(variables):
    def total(images):
        return (MODEL.apply(variables, images) ** 2).sum()

    direction = np.random.default_rng(1).normal(size=IMAGES.shape).astype(np.float32)

    @jax.jit
    def both(images):
        forward = jax.jvp(total, (images,), (direction,))[1]
        backward = (jax.grad(jax.checkpoint(total))(images) * direction).sum()
        return forward, backward

    forward, backward = both(IMAGES)
    forward, backward = float(forward), float(backward)
    assert np.isfinite(forward)
    assert forward == pytest.approx(backward, rel=1e-3)


def test_optax_fits_four_images(variables):
    tx = optax.adam(0.01)

    @jax.jit
    def step(params, stats, state):
        loss = partial(training_loss, model=MODEL)
        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(
            params, variables={"batch_stats": stats}
        )
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), stats, state, value

    params, stats = variables["params"], variables["batch_stats"]
    state, losses = tx.init(params), []
    for _ in range(15):
        params, stats, state, value = step(params, stats, state)
        losses.append(float(value))
    assert losses[-1] < 0.2 * losses[0]


def test_bfloat16_computes_with_float32_parameters(variables, logits):
    model = resnet8(dtype=jnp.bfloat16)
    init = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    assert {leaf.dtype for leaf in jax.tree.leaves(init)} == {jnp.dtype("float32")}
    out = jax.jit(lambda v: model.apply(v, IMAGES, method="endpoints"))(variables)
    assert out.pop("logits").dtype == jnp.float32
    assert {x.dtype for x in out.values()} == {jnp.dtype("bfloat16")}
    got = model.apply(variables, IMAGES)
    error = np.abs(got - logits).max() / np.abs(logits).max()
    assert 1e-5 < error < 0.05


@pytest.mark.parametrize("name", ["lenet5", "lenet5_modern", "cifar_resnet20"])
def test_types_of_parameters_and_logits(name):
    out, variables = shapes_of(name, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    assert out.dtype == jnp.float32
    for path, leaf in variables.items():
        is_statistic = path.startswith("batch_stats/")
        assert leaf.dtype == (jnp.float32 if is_statistic else jnp.bfloat16), path


def test_recomputing_changes_no_number_and_no_path(variables):
    model = resnet8(remat=True)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    assert jax.tree.structure(shapes) == jax.tree.structure(variables)

    def run(model):
        loss = partial(training_loss, model=model, variables=variables)
        lowered = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(
            variables["params"]
        )
        return lowered.as_text(), lowered.compile()(variables["params"])

    (text, plain), (again, recomputed) = run(MODEL), run(model)
    convolutions = "stablehlo.convolution"
    assert again.count(convolutions) > text.count(convolutions)
    assert jax.tree.structure(plain) == jax.tree.structure(recomputed)
    for a, b in zip(*map(jax.tree.leaves, (plain, recomputed)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max())


def to_nnx(variables):
    model = nnx.bridge.ToNNX(MODEL, rngs=nnx.Rngs(0)).lazy_init(IMAGES)
    for name, value in bridge.linen_vars_to_nnx_attrs(variables).items():
        setattr(model, name, value)
    return model


def test_nnx_computes_the_same(variables):
    expected = MODEL.apply(variables, IMAGES)
    np.testing.assert_array_equal(to_nnx(variables)(IMAGES), expected)


@pytest.mark.skipif(FLAX < (0, 12), reason="flax 0.11's bridge cannot train batch norm")
def test_nnx_trains_the_same(variables):
    model = to_nnx(variables)
    expected, new = MODEL.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
    got = model(IMAGES, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(got, expected)
    attributes = {k: v for k, v in vars(model).items() if k in ("backbone", "head")}
    after = bridge.nnx_attrs_to_linen_vars(attributes)
    assert_same_trees(after["batch_stats"], new["batch_stats"])
    assert_same_trees(after["params"], variables["params"])
