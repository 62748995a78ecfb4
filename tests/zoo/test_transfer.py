"""Transfer learning: what is frozen stays, what is grafted fits, heads exchange."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import zoo
from zoo import transfer
from zoo.classification.resnet import BasicBlock, resnet
from zoo.paths import flatten

IMAGES = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3])
resnet8 = partial(
    resnet, block=BasicBlock, blocks=(1, 1, 1), small=True, num_classes=10, width=8
)
MODEL = resnet8()


@pytest.fixture(scope="module")
def variables(cheap_jit):
    variables = cheap_jit(MODEL.init)(jax.random.key(0), IMAGES)

    def scatter(path, leaf):
        noise = np.random.default_rng(len(str(path))).uniform(0.5, 1, leaf.shape)
        return leaf + jnp.float32(noise) if "kernel" not in str(path) else leaf

    return jax.tree_util.tree_map_with_path(scatter, variables)


def make_step(frozen, tx, model=MODEL):
    """A training step with the given patterns frozen."""

    def loss(trained, kept, batch_stats, images):
        params = transfer.merge(trained, kept)
        still = transfer.frozen_modules(params, frozen)
        with transfer.freeze_statistics(still):
            logits, new = model.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, LABELS)
        return losses.mean(), (new["batch_stats"], logits)

    def step(params, batch_stats, opt_state, images):
        trained, kept = transfer.split(params, frozen)
        grads, (stats, logits) = jax.grad(loss, has_aux=True)(
            trained, kept, batch_stats, images
        )
        updates, opt_state = tx.update(grads, opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        return transfer.merge(kept, trained), stats, opt_state, logits

    return step


def compile_step(variables, frozen):
    tx = optax.adamw(0.01, weight_decay=0.1)
    state = (
        variables["params"],
        variables["batch_stats"],
        tx.init(transfer.split(variables["params"], frozen)[0]),
    )
    return jax.jit(make_step(frozen, tx)).lower(*state, IMAGES).compile(), state


def flops(compiled):
    costs = compiled.cost_analysis()
    return (costs[0] if isinstance(costs, list) else costs)["flops"]


def test_split_and_merge_are_inverse(variables):
    params = variables["params"]
    trained, kept = transfer.split(params, ["backbone/**"])
    assert [*trained] == ["head"]
    assert [*kept] == ["backbone"]
    assert flatten(transfer.merge(trained, kept)).keys() == flatten(params).keys()
    everything, nothing = transfer.split(params, [])
    assert nothing == {}
    assert flatten(everything).keys() == flatten(params).keys()
    assert transfer.merge({"a": 1, "b": {"c": 2}}, {"b": {"c": 3}}) == {
        "a": 1,
        "b": {"c": 3},
    }


def test_everything_frozen_and_unknown_patterns_are_errors(variables):
    with pytest.raises(ValueError, match=r"\['\*\*'\] freeze every parameter"):
        transfer.split(variables["params"], ["**"])
    with pytest.raises(ValueError, match=r"'backbon/.*matches no parameter.*backbone"):
        transfer.split(variables["params"], ["backbon/**"])


def test_a_module_is_frozen_when_all_of_its_own_parameters_are(variables):
    find = lambda *patterns: transfer.frozen_modules(variables["params"], patterns)  # noqa: E731
    assert find("backbone/stem/**") == {"backbone/stem/conv", "backbone/stem/bn"}
    assert find("backbone/stem/bn/scale") == frozenset()
    assert find("**/bn/{scale,bias}") == {"backbone/stem/bn"}
    assert find() == frozenset()


def test_what_is_frozen_is_bit_identical_and_the_rest_moves(variables):
    frozen = ("backbone/{stem,stage1}/**",)
    compiled, state = compile_step(variables, frozen)
    for _ in range(3):
        *state, logits = compiled(*state, IMAGES)
    after = {"params": state[0], "batch_stats": state[1]}
    for path, leaf in flatten(variables).items():
        is_still = path.split("/")[2] in ("stem", "stage1")
        same = np.array_equal(leaf, flatten(after)[path])
        assert same == is_still, path
    assert jnp.isfinite(logits).all()


@pytest.mark.parametrize("remat", [False, True])
def test_frozen_batch_norm_runs_as_at_inference(variables, remat, cheap_jit):
    """With the whole backbone frozen, training computes what inference computes."""
    model = resnet8(remat=remat)
    still = transfer.frozen_modules(variables["params"], ["backbone/**"])

    @cheap_jit
    def run(variables):
        train = partial(model.apply, train=True, mutable=["batch_stats"])
        with transfer.freeze_statistics(still):
            frozen = train(variables, IMAGES)
        return *frozen, train(variables, IMAGES)[0], MODEL.apply(variables, IMAGES)

    logits, new, trained, expected = run(variables)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    for path, leaf in flatten(variables["batch_stats"]).items():
        np.testing.assert_array_equal(leaf, flatten(new["batch_stats"])[path])
    assert np.abs(trained - expected).max() > 1e-3


def test_no_gradient_is_computed_for_what_is_frozen(variables):
    everything, _ = compile_step(variables, ())
    head, _ = compile_step(variables, ("backbone/**",))
    early, _ = compile_step(variables, ("backbone/{stem,stage1}/**",))
    # Forward is a third of forward and backward.
    assert flops(head) < 0.45 * flops(everything)
    assert flops(head) < flops(early) < 0.95 * flops(everything)


def test_graft_copies_everything(variables):
    source = jax.tree.map(lambda x: np.asarray(x) + 1, variables)
    before = jax.tree.map(np.array, variables)
    out = transfer.graft(variables, source)
    jax.tree.map(np.testing.assert_array_equal, out, source)
    jax.tree.map(np.testing.assert_array_equal, variables, before)


SMALL = {
    "params": {"a": {"w": jnp.zeros((2, 3))}, "b": {"w": jnp.zeros(4, jnp.bfloat16)}},
    "batch_stats": {"a": {"mean": jnp.zeros(3)}},
}


def other(**changes):
    """A source for SMALL with ones, and some paths changed: None removes one."""
    flat = {k: np.ones(v.shape, np.float32) for k, v in flatten(SMALL).items()}
    flat |= {k.replace("__", "/"): v for k, v in changes.items()}
    return transfer.unflatten({k: v for k, v in flat.items() if v is not None})


def test_graft_takes_the_targets_types():
    out = transfer.graft(SMALL, other())
    assert out["params"]["b"]["w"].dtype == jnp.bfloat16
    assert out["params"]["a"]["w"].dtype == jnp.float32
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(out))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (other(params__a__w=None), [r"not filled: params/a/w \[2, 3\]"]),
        (other(batch_stats__a__mean=None), [r"not filled: batch_stats/a/mean \[3\]"]),
        (other(params__c=np.ones(2)), [r"not used: params/c \[2\]"]),
        (
            other(params__a__w=np.ones((3, 3))),
            [
                r"shape in the target: params/a/w \[2, 3\]",
                r"shape in the source: params/a/w \[3, 3\]",
            ],
        ),
        (
            other(params__a__w=None, params__a__v=np.ones(1)),
            [r"not filled: params/a/w", r"not used: params/a/v"],
        ),
    ],
)
def test_graft_lists_both_sides_of_every_mismatch(source, words):
    for word in words:
        with pytest.raises(ValueError, match=word):
            transfer.graft(SMALL, source)


def test_graft_keeps_ignores_and_renames():
    odd = other(params__a__w=np.ones((9, 9)))
    out = transfer.graft(SMALL, odd, keep=["a/w"])
    assert not out["params"]["a"]["w"].any()
    assert out["params"]["b"]["w"].all()

    more = other(params__old__w=np.ones(7))
    assert transfer.graft(SMALL, more, ignore=["old/**"])["params"]["a"]["w"].all()
    with pytest.raises(ValueError, match="not filled: params/a/w"):
        transfer.graft(SMALL, more, ignore=["old/**", "a/w"])

    named = {
        "params": {"x": other()["params"]["a"], "y": {"b": other()["params"]["b"]}},
        "batch_stats": {"x": other()["batch_stats"]["a"]},
    }
    out = transfer.graft(SMALL, named, rename={"x": "a", "y/b": "b"})
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(out))
    # Patterns of `ignore` are over the names that the source has.
    named["params"]["y"]["c"] = np.ones(1)
    rename = {"x": "a", "y": "z", "y/b": "b"}
    out = transfer.graft(SMALL, named, rename=rename, ignore=["y/c"])
    assert out["params"]["b"]["w"].all()


def test_graft_refuses_names_that_do_nothing_or_collide():
    with pytest.raises(ValueError, match=r"'zz/.*matches no parameter"):
        transfer.graft(SMALL, other(), keep=["zz/**"])
    with pytest.raises(ValueError, match=r"'zz/.*matches no parameter"):
        transfer.graft(SMALL, other(), ignore=["zz/**"])
    with pytest.raises(
        ValueError, match=r"rename has \['zz'\].*begin with \['a', 'b'\]"
    ):
        transfer.graft(SMALL, other(), rename={"zz": "a"})
    with pytest.raises(ValueError, match="two leaves the path 'a/w'"):
        transfer.graft(SMALL, other(), rename={"b": "a"})


def test_a_new_head_keeps_the_shared_classes(variables):
    before = jax.tree.map(np.array, variables)
    shared = {0: 9, 4: 2}
    model, new = transfer.replace_head(
        MODEL, variables, 5, key=jax.random.key(7), shared=shared
    )
    assert jax.jit(model.apply)(new, IMAGES).shape == (4, 5)
    for name in ("kernel", "bias"):
        old, leaf = (
            np.asarray(v["params"]["head"]["fc"][name]) for v in (variables, new)
        )
        assert leaf.shape[-1] == 5
        for new_class, old_class in shared.items():
            np.testing.assert_array_equal(leaf[..., new_class], old[..., old_class])
    fresh = transfer.replace_head(MODEL, variables, 5, key=jax.random.key(7))[1]
    np.testing.assert_array_equal(
        new["params"]["head"]["fc"]["kernel"][:, 1:4],
        fresh["params"]["head"]["fc"]["kernel"][:, 1:4],
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        new["params"]["backbone"],
        before["params"]["backbone"],
    )
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    assert MODEL.head.num_classes == 10


def test_a_head_without_parameters_is_exchanged(cheap_jit):
    model = zoo.build("lenet5")
    images = jnp.ones((1, 32, 32, 1))
    variables = cheap_jit(model.init)(jax.random.key(0), images)
    wide, same = transfer.replace_head(model, variables, 12, key=jax.random.key(0))
    logits = wide.apply(same, images)
    assert logits.shape == (1, 12)
    np.testing.assert_array_equal(logits[:, :10], model.apply(variables, images))
    with pytest.raises(ValueError, match="each class's code is fixed"):
        transfer.replace_head(model, variables, 5, key=jax.random.key(0), shared={0: 1})


def test_impossible_heads_are_refused(variables):
    key = jax.random.key(0)
    for shared in ({5: 0}, {0: 10}, {-1: 0}):
        with pytest.raises(ValueError, match="5 new and 10 old classes"):
            transfer.replace_head(MODEL, variables, 5, key=key, shared=shared)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        transfer.replace_head(MODEL, variables, 0, key=key)
    with pytest.raises(ValueError, match="the model has no head"):
        transfer.replace_head(MODEL.clone(head=None), variables, 5, key=key)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_images_with_equal_channels_keep_their_response(variables, channels):
    before = jax.tree.map(np.array, variables)
    layer = "backbone/stem/conv"
    new = transfer.change_input_channels(variables, layer, channels)
    kernel = new["params"]["backbone"]["stem"]["conv"]["kernel"]
    assert kernel.shape == (3, 3, channels, 8)
    gray = IMAGES[:1, :, :, :1]
    conv = nn.Conv(8, (3, 3), padding=1, use_bias=False)
    response, expected = (
        conv.apply({"params": v["params"]["backbone"]["stem"]["conv"]}, x)
        for v, x in (
            (new, gray.repeat(channels, -1)),
            (variables, gray.repeat(3, -1)),
        )
    )
    error = np.abs(response - expected).max() / np.abs(expected).max()
    assert error < 1e-6
    jax.tree.map(np.testing.assert_array_equal, variables, before)


def test_a_gray_network_is_the_rgb_network(variables):
    new = transfer.change_input_channels(variables, "backbone/stem/conv", 1)
    apply = jax.jit(MODEL.apply)
    gray = IMAGES[..., :1]
    expected = apply(variables, gray.repeat(3, -1))
    error = np.abs(apply(new, gray) - expected).max() / np.abs(expected).max()
    assert error < 1e-6


def test_input_channels_of_other_layers_are_refused(variables):
    for layer in ("backbone/stem", "head/fc", "backbone/stem/bn"):
        with pytest.raises(ValueError, match=r"is no convolution; .*backbone/stage1"):
            transfer.change_input_channels(variables, layer, 1)
    with pytest.raises(ValueError, match="channels must be at least 1, got 0"):
        transfer.change_input_channels(variables, "backbone/stem/conv", 0)


# LeNet's codes of the classes are fixed, and R-CNN's machines are fitted, not trained.
OTHERS = ("lenet5", "rcnn_alexnet", "rcnn_vgg16")


@pytest.mark.parametrize("name", [n for n in zoo.list_models() if n not in OTHERS])
def test_every_head_has_the_class_of_each_output(name):
    heads = zoo.build(name, num_classes=3).heads()
    assert heads
    for head in heads.values():
        for outputs in head.class_outputs().values():
            assert {*outputs.classes.tolist()} - {-1} == {0, 1, 2}
