"""ImageNet's recipes: their numbers, and that they fit the networks they name."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

import zoo
from train.configs import CONFIGS, get_config
from train.data import parse_crop
from train.optim import make_optimizer, make_schedule
from zoo.ops import augment
from zoo.paths import flatten, match_paths

RECIPES = [name for name in CONFIGS if name.startswith("imagenet_")]


def rates(name, images=1_281_167):
    """The learning rate by epoch, and the number of steps."""
    config = get_config(name)
    epoch = images // config.data.batch_size
    total = config.steps or config.epochs * epoch
    schedule = make_schedule(config.optim, total)
    return lambda e: float(schedule(jnp.int32(round(e * epoch)))), total


@pytest.mark.parametrize(
    ("name", "first", "drops", "factor"),
    [
        ("imagenet_alexnet", 0.01, (20, 40, 60), 0.1),
        ("imagenet_zfnet", 0.01, (20, 40, 60), 0.1),
        ("imagenet_vgg16", 0.01, (18.5, 37, 55.5), 0.1),
        ("imagenet_googlenet", 0.01, range(8, 250, 8), 0.96),
        ("imagenet_resnet50", 0.1, (30, 60), 0.1),
        ("imagenet_resnet50_v1", 0.1, (30, 60, 90), 0.1),
        ("imagenet_msra_a", 0.01, (40, 60), 0.1),
    ],
)
def test_the_rate_falls_when_the_recipe_says(name, first, drops, factor):
    rate, _ = rates(name)
    for i, epoch in enumerate(drops):
        assert rate(epoch - 0.01) == pytest.approx(first * factor**i, rel=1e-4)
        assert rate(epoch + 0.01) == pytest.approx(first * factor ** (i + 1), rel=1e-4)
    assert rate(get_config(name).epochs) == rate(drops[-1] + 1)


def test_lengths_are_the_papers():
    lengths = {"vgg11": 370_000, "resnet50_v1": 600_000, "googlenet": 10_000_000}
    for name, expected in lengths.items():
        assert rates(f"imagenet_{name}")[1] == pytest.approx(expected, rel=2e-3)
    rate, total = rates("imagenet_googlenet_quick")
    assert total == 2_400_000
    # Half of the square root of one quarter left.
    assert rate(0.75 * total / (1_281_167 // 32)) == pytest.approx(0.005, rel=1e-3)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_fit_the_networks_they_name(name):
    config = get_config(name)
    spec = zoo.get_spec(config.model.name)
    aux = config.model.options == ("aux=True",)
    module = zoo.build(spec.name, **({"aux": True} if aux else {}))
    size, pre = spec.preprocess.size, spec.preprocess
    images = jnp.zeros((2, size, size, 3))
    params = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    make_optimizer(config.optim, lambda _: 0.1, params)  # its patterns match
    parse_crop(config.data.crop, pre)
    image = jax.ShapeDtypeStruct((size, size, 3), "uint8")
    jax.eval_shape(augment.compose(config.data.augment), jax.random.key(0), image)
    if config.model.layers:
        paths = {*flatten(params)}
        other = zoo.build("vgg11")
        shapes = flatten(
            jax.eval_shape(other.init, jax.random.key(0), images)["params"]
        )
        taken = match_paths([*paths], config.model.layers)
        assert len(taken) == 2 * 7  # kernels and biases of four and three layers
        assert all(shapes[p].shape == flatten(params)[p].shape for p in taken)
    if aux:
        apply = partial(module.apply, method="endpoints", train=True)
        out = jax.eval_shape(
            lambda p: apply({"params": p}, images, rngs={"dropout": jax.random.key(0)}),
            params,
        )
        assert {out[k].shape for k, _ in spec.aux_losses} == {(2, 1000)}


def test_tiny_recipes_are_small():
    config = get_config("imagenet_resnet50_tiny")
    assert config.data.dataset == "digits"
    assert config.data.eval_split == "test[:16]"
    assert (config.data.workers, config.steps) == (0, 3)
    assert config.data.crop == "area:0.08:1"
    assert get_config("cifar10_resnet20_tiny").data.eval_split == "test"
