"""Training steps: what is frozen stands still, and what moves moves as it should."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_classifier import PREPROCESS, Backbone, make_batch
from tiny_runs import flat

import zoo
from train.config import OptimConfig
from train.optim import make_optimizer, make_schedule
from train.state import change_frozen, create_state
from train.steps import check_divides, make_mesh, make_prepare, make_train_step
from train.tasks import Classification, softmax_cross_entropy
from zoo.layers import Classifier, make_head
from zoo.ops import augment


def make_all(config=OptimConfig(), *, frozen=(), norm=True, dtype=jnp.float32, fn=None):  # noqa: B008
    """Returns the state before the first step, the step, and the optimizer."""
    model = Classifier(Backbone(norm, dtype), make_head(3, dtype=dtype))
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    schedule = make_schedule(config, 100)
    tx = make_optimizer(config, schedule, variables["params"])
    step = make_train_step(
        model,
        Classification(softmax_cross_entropy),
        tx,
        schedule=schedule,
        prepare=make_prepare(PREPROCESS, fn),
        seed=1,
        frozen=frozen,
        ema_decay=config.ema_decay,
        accumulate=config.accumulate,
    )
    ema = config.ema_decay is not None
    state = create_state(variables, tx, frozen=frozen, ema=ema)
    return state, jax.jit(step), tx


def walk(state, step, count, **batch):
    states = [state]
    for i in range(count):
        states.append(step(states[-1], make_batch(seed=i, **batch))[0])
    return states


def test_a_donated_state_lends_all_of_its_memory_to_the_new_one():
    config = OptimConfig(momentum=0.9, ema_decay=0.9)
    state, step, _ = make_all(config)
    donating = jax.jit(step, donate_argnums=0)
    memory = donating.lower(state, make_batch()).compile().memory_analysis()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes == size


def test_frozen_parts_stand_still_to_the_bit_and_the_others_move():
    config = OptimConfig(weight_decay=0.1, momentum=0.9, ema_decay=0.9)
    frozen = ("backbone/stage1_conv/**", "backbone/stage1_bn/**")
    state, step, _ = make_all(config, frozen=frozen)
    # Statistics with no short binary fraction: an average of them would round.
    noise = jax.random.uniform(jax.random.key(5), (4,), minval=0.1)
    state.batch_stats["backbone"]["stage1_bn"]["mean"] = noise
    state.ema["batch_stats"]["backbone"]["stage1_bn"]["mean"] = noise
    last = walk(state, step, 20)[-1]

    def compare(before, after, still, moving):
        before, after = flat(before), flat(after)
        assert before.keys() == after.keys()
        for path in before:
            same = before[path].tobytes() == after[path].tobytes()
            assert same == ("stage1" in path), path
        assert sum("stage1" in path for path in before) == still
        assert sum("stage1" not in path for path in before) == moving

    compare(state.params, last.params, 4, 6)
    compare(state.batch_stats, last.batch_stats, 2, 2)
    compare(state.ema["params"], last.ema["params"], 0, 6)
    compare(state.ema["batch_stats"], last.ema["batch_stats"], 2, 2)
    evaluated = last.eval_variables()
    for path, leaf in flat(state.params).items():
        same = leaf.tobytes() == flat(evaluated["params"])[path].tobytes()
        assert same == ("stage1" in path)


def test_freezing_the_backbone_saves_its_backward_pass():
    def flops(frozen):
        state, step, _ = make_all(frozen=frozen)
        cost = step.lower(state, make_batch()).compile().cost_analysis()
        return cost["flops"]

    whole, lower, head = (
        flops(()),
        flops(("backbone/stage1*/**",)),
        flops(("backbone/**",)),
    )
    assert head < 0.5 * whole
    assert head < lower < whole


def test_thawing_keeps_the_slots_and_averages_of_what_was_trained():
    config = OptimConfig(ema_decay=0.9)
    state, step, tx = make_all(config, frozen=("backbone/**",))
    state = walk(state, step, 3)[-1]
    thawed = change_frozen(state, tx, ("backbone/stage1*/**",))
    old, new = (flat(optax.tree.get(s.opt_state, "trace")) for s in (state, thawed))
    assert all("head" in path for path in old)
    for path, slot in new.items():
        if path in old:
            assert slot.tobytes() == old[path].tobytes()
            assert slot.any()
        else:
            assert path.startswith("backbone/stage2")
            assert not slot.any()
    # Averages of the newly trained begin at what they are, not at the start.
    averages, params = flat(thawed.ema["params"]), flat(thawed.params)
    path = "backbone/stage2_conv/kernel"
    assert averages[path].tobytes() == params[path].tobytes()
    path = "head/fc/kernel"
    assert averages[path].tobytes() == flat(state.ema["params"])[path].tobytes()
    assert thawed.step == 3


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_parts_are_the_big_batch(parts):
    state, whole, _ = make_all(norm=False)
    _, split, _ = make_all(OptimConfig(accumulate=parts), norm=False)
    batch = make_batch(16)
    (ours, scalars), (theirs, expected) = split(state, batch), whole(state, batch)
    for path, leaf in flat(theirs.params).items():
        np.testing.assert_allclose(flat(ours.params)[path], leaf, atol=1e-6)
    for name, value in expected.items():
        assert float(scalars[name]) == pytest.approx(float(value), rel=1e-5)


def test_accumulation_updates_statistics_part_by_part():
    state, split, _ = make_all(OptimConfig(accumulate=2))
    batch = make_batch(16)
    images = (np.asarray(batch["image"], np.float32) / 255 - 0.5) / 0.5
    kernel = state.params["backbone"]["stage1_conv"]["kernel"]
    mean = np.zeros(4)
    for part in (images[0::2], images[1::2]):
        x = jax.lax.conv_general_dilated(
            part, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        mean = 0.9 * mean + 0.1 * np.asarray(x).mean((0, 1, 2))
    stats = split(state, batch)[0].batch_stats["backbone"]["stage1_bn"]
    np.testing.assert_allclose(stats["mean"], mean, atol=1e-6)


def test_the_moving_average_is_the_one_of_the_book():
    state, step, _ = make_all(OptimConfig(ema_decay=0.75))
    states = walk(state, step, 4)
    for path in ("backbone/stage1_conv/kernel", "head/fc/bias"):
        average = flat(states[0].params)[path]
        for later in states[1:]:
            average = 0.75 * average + 0.25 * flat(later.params)[path]
        np.testing.assert_allclose(
            flat(states[-1].ema["params"])[path], average, rtol=1e-5, atol=1e-7
        )
    path, average = "backbone/stage2_bn/var", 1.0
    for later in states[1:]:
        average = 0.75 * average + 0.25 * flat(later.batch_stats)[path]
    np.testing.assert_allclose(
        flat(states[-1].ema["batch_stats"])[path], average, rtol=1e-5
    )


def test_half_precision_computes_in_it_and_keeps_everything_in_float32():
    config = OptimConfig(ema_decay=0.9)
    state, step, _ = make_all(config, dtype=jnp.bfloat16)
    after, scalars = step(state, make_batch())
    leaves = jax.tree.leaves((after.params, after.batch_stats, after.ema))
    assert {leaf.dtype for leaf in leaves} == {np.dtype("float32")}
    slots = [x for x in jax.tree.leaves(after.opt_state) if x.ndim]
    assert {slot.dtype for slot in slots} == {np.dtype("float32")}
    assert {v.dtype for v in scalars.values()} == {np.dtype("float32")}
    assert "bf16" in step.lower(state, make_batch()).as_text()
    _, exact, _ = make_all(config)
    loss = exact(state, make_batch())[1]["loss"]
    assert 0 < abs(float(scalars["loss"] - loss)) < 0.02 * float(loss)


def test_metrics_are_of_the_step_before_the_update():
    config = OptimConfig(learning_rate=0.1, schedule="step", clip_norm=1e-3)
    state, step, _ = make_all(config)
    batch = make_batch()
    after, scalars = step(state, batch)
    assert int(after.step) == 1
    assert float(scalars["learning_rate"]) == pytest.approx(0.1)
    again = step(state, batch)[1]
    assert float(again["loss"]) == float(scalars["loss"])
    # The norm is the gradient's own, not the clipped one's.
    assert float(scalars["grad_norm"]) > 0.1
    late = step(state.replace(step=jnp.int32(75)), batch)[1]
    assert float(late["learning_rate"]) == pytest.approx(0.001)


def test_an_augmented_image_depends_on_seed_step_and_index_alone():
    prepare = jax.jit(
        make_prepare(PREPROCESS, augment.compose(("pad_crop:2", "affine")))
    )
    batch, key = make_batch(6), jax.random.key(3)
    images = np.asarray(prepare(key, batch))
    turned = {k: v[::-1] for k, v in batch.items()}
    np.testing.assert_array_equal(prepare(key, turned), images[::-1])
    few = {k: v[2:3] for k, v in batch.items()}
    np.testing.assert_array_equal(prepare(key, few), images[2:3])
    same = {**batch, "image": jnp.broadcast_to(batch["image"][:1], (6, 8, 8, 1))}
    assert len({image.tobytes() for image in np.asarray(prepare(key, same))}) == 6
    assert (np.asarray(prepare(jax.random.key(4), batch)) != images).any()


def test_each_step_and_seed_augments_anew():
    state, step, _ = make_all(fn=augment.compose(("affine:20",)))
    batch = make_batch()
    losses = [
        float(step(state.replace(step=jnp.int32(s)), batch)[1]["loss"])
        for s in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_the_image_that_augmentation_leaves_is_normalized():
    batch = make_batch(2)
    images = make_prepare(PREPROCESS, None)(jax.random.key(0), batch)
    np.testing.assert_allclose(
        images, (np.asarray(batch["image"]) / 255 - 0.5) / 0.5, rtol=1e-5, atol=1e-6
    )
    assert images.dtype == jnp.float32


def test_batches_that_do_not_divide_are_named():
    mesh = make_mesh()
    check_divides("data.batch_size", 12, mesh, 3)
    with pytest.raises(ValueError, match=r"data.batch_size=12 .* of 5 accumulated"):
        check_divides("data.batch_size", 12, mesh, 5)


def test_a_whole_backbone_of_the_zoo_freezes_with_its_batch_norm():
    model, variables = zoo.create("cifar_resnet20", key=jax.random.key(0))
    config = OptimConfig(learning_rate=0.1, weight_decay=0.1)
    schedule = make_schedule(config, 10)
    tx = make_optimizer(config, schedule, variables["params"])
    spec = zoo.get_spec("cifar_resnet20")
    step = make_train_step(
        model,
        Classification(softmax_cross_entropy),
        tx,
        schedule=schedule,
        prepare=make_prepare(spec.preprocess, None),
        seed=0,
        frozen=("backbone/**",),
    )
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    batch = {"image": images, "label": np.arange(4), "index": np.arange(4)}
    state = create_state(variables, tx, frozen=("backbone/**",))
    after, _ = jax.jit(step)(state, jax.tree.map(jnp.asarray, batch))
    before, after = flat(state.variables()), flat(after.variables())
    moved = {k for k in before if before[k].tobytes() != after[k].tobytes()}
    assert moved == {"params/head/fc/kernel", "params/head/fc/bias"}
