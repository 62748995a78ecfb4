"""Schedules and optimizers against numbers worked out by hand and by torch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.config import OptimConfig
from train.optim import frozen_paths, make_optimizer, make_schedule, scale_warmup
from train.state import create_state
from train.tasks import make_loss

PARAMS = {
    "backbone": {
        "conv": {"kernel": np.array([[1.0, -2.0]]), "bias": np.array([0.5])},
        "norm": {"scale": np.array([1.0, 1.0])},
    },
    "head": {"fc": {"kernel": np.array([[3.0], [4.0]])}},
}
PARAMS = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)


def schedule(total, **fields):
    fn = make_schedule(OptimConfig(**fields), total)
    return lambda step: float(fn(jnp.asarray(step, jnp.int32)))


def test_step_schedule_drops_at_fractions_of_the_whole():
    rate = schedule(64_000, schedule="step", learning_rate=0.1)
    assert [rate(s) for s in (0, 31_999)] == pytest.approx([0.1, 0.1])
    assert [rate(s) for s in (32_000, 47_999)] == pytest.approx([0.01, 0.01])
    assert [rate(s) for s in (48_000, 63_999)] == pytest.approx([0.001, 0.001])


def test_step_schedule_counts_from_the_first_step_with_a_warm_up():
    rate = schedule(
        1000, schedule="step", learning_rate=0.1, warmup_steps=400, warmup_rate=0.01
    )
    assert rate(0) == pytest.approx(0.01)
    assert rate(200) == pytest.approx(0.055)
    assert rate(400) == rate(499) == pytest.approx(0.1)
    assert rate(500) == rate(749) == pytest.approx(0.01)
    assert rate(750) == pytest.approx(0.001)


def test_boundaries_that_fall_on_one_step_both_count():
    rate = schedule(2, schedule="step", learning_rate=1.0, boundaries=(0.5, 0.6))
    assert [rate(0), rate(1)] == pytest.approx([1.0, 0.01])


def test_a_boundary_within_the_warm_up_holds_after_it():
    rate = schedule(100, schedule="step", learning_rate=1.0, warmup_steps=60)
    assert [rate(60), rate(74), rate(75)] == pytest.approx([0.1, 0.1, 0.01])


def test_cosine_falls_from_the_rate_to_nothing():
    rate = schedule(100, schedule="cosine", learning_rate=0.2)
    assert [rate(0), rate(50), rate(100)] == pytest.approx([0.2, 0.1, 0.0], abs=1e-7)
    assert rate(25) == pytest.approx(0.1 * (1 + np.cos(np.pi / 4)))
    warm = schedule(110, schedule="cosine", learning_rate=0.2, warmup_steps=10)
    assert [warm(0), warm(5), warm(10), warm(60)] == pytest.approx([0, 0.1, 0.2, 0.1])


def test_polynomial_falls_with_its_power():
    rate = schedule(100, schedule="polynomial", learning_rate=0.2, power=0.9)
    assert rate(0) == pytest.approx(0.2)
    assert rate(50) == pytest.approx(0.2 * 0.5**0.9)
    assert rate(99) == pytest.approx(0.2 * 0.01**0.9, rel=1e-4)
    assert rate(100) == 0


def test_inverse_is_caffes():
    rate = schedule(
        10_000, schedule="inverse", learning_rate=0.01, gamma=1e-4, power=0.75
    )
    for step in (0, 1, 500, 9_999):
        assert rate(step) == pytest.approx(0.01 * (1 + 1e-4 * step) ** -0.75)


def test_constant_stays():
    rate = schedule(10, learning_rate=0.3)
    assert [rate(0), rate(9)] == pytest.approx([0.3, 0.3])


def test_a_warm_up_longer_than_the_training_is_refused():
    with pytest.raises(ValueError, match=r"warmup_steps .* 10 steps .* got 10"):
        make_schedule(OptimConfig(warmup_steps=10), 10)


def test_a_warm_up_longer_than_the_training_is_scaled_and_said(caplog):
    config = OptimConfig(warmup_steps=100)
    assert scale_warmup(config, 30).warmup_steps == 3
    assert "warmup_steps=100 is not less than the 30 steps" in caplog.text
    assert make_schedule(scale_warmup(config, 5), 5)(0) == pytest.approx(0.1)
    for total in (101, 1000):
        assert scale_warmup(config, total) is config
    assert len(caplog.records) == 2


def walk(config, gradients, total=8):
    """Returns the parameters after each of some steps with given gradients."""
    rate = make_schedule(config, total)
    tx = make_optimizer(config, rate, PARAMS)
    params, slots, out = PARAMS, tx.init(PARAMS), []
    for grads in gradients:
        updates, slots = tx.update(grads, slots, params)
        params = optax.apply_updates(params, updates)
        out.append(params)
    return out


def some_gradients(steps=8, scale=1.0):
    rng = np.random.default_rng(1)
    return [
        jax.tree.map(
            lambda x: jnp.asarray(scale * rng.normal(size=x.shape), jnp.float32), PARAMS
        )
        for _ in range(steps)
    ]


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_has_momentum_and_coupled_decay_under_a_changing_rate(nesterov):
    config = OptimConfig(
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=0.05,
        nesterov=nesterov,
        schedule="step",
    )
    gradients, rates = some_gradients(), [0.1] * 4 + [0.01] * 2 + [0.001] * 2
    p = np.array([3.0, 4.0])
    velocity = np.zeros(2)
    found = walk(config, gradients)
    for grads, rate, params in zip(gradients, rates, found, strict=True):
        g = np.asarray(grads["head"]["fc"]["kernel"])[:, 0] + 0.05 * p
        velocity = 0.9 * velocity + g
        p = p - rate * (g + 0.9 * velocity if nesterov else velocity)
        np.testing.assert_allclose(params["head"]["fc"]["kernel"][:, 0], p, rtol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adamw"])
def test_optimizers_are_torchs(name):
    torch = pytest.importorskip("torch")
    config = OptimConfig(
        name="adamw" if name == "adamw" else "sgd",
        learning_rate=0.1,
        weight_decay=0.05,
        nesterov=name == "nesterov",
        schedule="step",
    )
    theirs = torch.nn.Parameter(torch.tensor([[3.0], [4.0]]))
    if name == "adamw":
        optimizer = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.05)
    else:
        nesterov = name == "nesterov"
        optimizer = torch.optim.SGD(
            [theirs], lr=0.1, momentum=0.9, weight_decay=0.05, nesterov=nesterov
        )
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [4, 6], 0.1)
    gradients = some_gradients()
    for grads, params in zip(gradients, walk(config, gradients), strict=True):
        theirs.grad = torch.tensor(np.asarray(grads["head"]["fc"]["kernel"]))
        optimizer.step()
        scheduler.step()
        ours = np.asarray(params["head"]["fc"]["kernel"])
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=2e-5)


def test_clipping_bounds_the_norm_over_all_parameters():
    config = OptimConfig(learning_rate=1.0, momentum=0.0, weight_decay=0.0)
    config = dataclasses.replace(config, clip_norm=0.5)
    (grads,) = some_gradients(1, scale=100.0)
    (params,) = walk(config, [grads])
    moved = jax.tree.map(jnp.subtract, PARAMS, params)
    assert float(optax.tree.norm(moved)) == pytest.approx(0.5, rel=1e-5)
    share = 0.5 / float(optax.tree.norm(grads))
    expected = share * np.asarray(grads["head"]["fc"]["kernel"])
    np.testing.assert_allclose(
        moved["head"]["fc"]["kernel"], expected, rtol=1e-4, atol=1e-6
    )
    small = jax.tree.map(lambda g: g * 1e-4, grads)
    (params,) = walk(config, [small])
    moved = jax.tree.map(jnp.subtract, PARAMS, params)["head"]["fc"]["kernel"]
    np.testing.assert_allclose(moved, small["head"]["fc"]["kernel"], atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_decay_of_kernels_alone_leaves_biases_and_scales(name):
    zeros = [jax.tree.map(jnp.zeros_like, PARAMS)]
    config = OptimConfig(name=name, learning_rate=0.1, weight_decay=0.5)
    (all_decayed,) = walk(config, zeros)
    (params,) = walk(dataclasses.replace(config, decay="kernels"), zeros)
    assert float(all_decayed["backbone"]["conv"]["bias"][0]) == pytest.approx(0.475)
    assert params["backbone"]["conv"]["bias"] == PARAMS["backbone"]["conv"]["bias"]
    assert (params["backbone"]["norm"]["scale"] == 1).all()
    np.testing.assert_allclose(
        params["head"]["fc"]["kernel"], 0.95 * PARAMS["head"]["fc"]["kernel"]
    )


def test_more_than_kernels_can_be_decayed():
    zeros = [jax.tree.map(jnp.zeros_like, PARAMS)]
    config = OptimConfig(
        learning_rate=0.1, weight_decay=0.5, decay="kernels", decay_also=("**/scale",)
    )
    (params,) = walk(config, zeros)
    assert params["backbone"]["norm"]["scale"] == pytest.approx(0.95)
    assert params["backbone"]["conv"]["bias"] == PARAMS["backbone"]["conv"]["bias"]
    with pytest.raises(ValueError, match=r"decay_also=.* is for optim\.decay=kernels"):
        walk(dataclasses.replace(config, decay="all"), zeros)
    with pytest.raises(ValueError, match="matches no"):
        walk(dataclasses.replace(config, decay_also=("**/gamma",)), zeros)


def test_half_the_rate_and_twice_the_decay_are_half_the_gradient():
    # As YOLO's recipe stands for Darknet's, whose gradient is half of ours.
    halves = some_gradients(5)
    wholes = jax.tree.map(lambda g: 2 * g, halves)
    darknet = OptimConfig(learning_rate=0.1, weight_decay=0.02, decay="kernels")
    ours = dataclasses.replace(darknet, learning_rate=0.05, weight_decay=0.04)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
        walk(darknet, halves)[-1],
        walk(ours, wholes)[-1],
    )


def test_rates_by_path_scale_the_whole_update():
    config = OptimConfig(
        learning_rate=0.1,
        weight_decay=0.5,
        momentum=0.9,
        rates=("backbone/**=0.1", "backbone/norm/scale=0"),
    )
    gradients = some_gradients(3)
    ours = walk(config, gradients)[0]
    plain = walk(dataclasses.replace(config, rates=()), gradients)[0]
    moved = lambda p: np.asarray(p - PARAMS["backbone"]["conv"]["kernel"])  # noqa: E731
    np.testing.assert_allclose(
        moved(ours["backbone"]["conv"]["kernel"]),
        0.1 * moved(plain["backbone"]["conv"]["kernel"]),
        rtol=1e-4,
    )
    assert (ours["backbone"]["norm"]["scale"] == 1).all()
    assert (ours["head"]["fc"]["kernel"] == plain["head"]["fc"]["kernel"]).all()


def test_filters_are_held_to_their_root_mean_square():
    filters = np.array([0.05, 0.2, 0.4]) * np.ones((3, 3, 2, 3))
    params = {
        "conv": {"kernel": jnp.asarray(filters, jnp.float32), "bias": jnp.full(3, 5.0)},
        "fc": {"kernel": jnp.full((4, 3), 5.0)},
    }
    config = OptimConfig(
        learning_rate=1.0, momentum=0.0, weight_decay=0.0, filter_rms=0.1
    )
    tx = make_optimizer(config, optax.constant_schedule(1.0), params)
    grads = jax.tree.map(jnp.zeros_like, params)
    # One element moves the first filter above the limit; the others are above it.
    step = jnp.zeros((3, 3, 2, 3)).at[0, 0, 0, 0].set(-1.0)
    grads = {**grads, "conv": {**grads["conv"], "kernel": step}}
    updates, _ = tx.update(grads, tx.init(params), params)
    after = optax.apply_updates(params, updates)
    kernel = np.asarray(after["conv"]["kernel"], np.float64)
    rms = np.sqrt(np.square(kernel).mean((0, 1, 2)))
    np.testing.assert_allclose(rms, 0.1, rtol=1e-5)
    expected = filters[..., 0] - np.asarray(step)[..., 0]
    expected *= 0.1 / np.sqrt(np.square(expected).mean())
    np.testing.assert_allclose(kernel[..., 0], expected, rtol=1e-5)
    assert (after["conv"]["bias"] == 5).all()
    assert (after["fc"]["kernel"] == 5).all()
    small = jax.tree.map(lambda p: p * 0.2, params)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, grads), tx.init(small), small)
    assert not np.asarray(updates["conv"]["kernel"])[..., :2].any()


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (("backbone/**",), "PATTERN=FACTOR"),
        (("backbone/**=fast",), "PATTERN=FACTOR .* 'backbone/\\*\\*=fast'"),
        (("=0.1",), "PATTERN=FACTOR"),
        (("**=nan",), "'\\*\\*=nan'"),
        (("**=inf",), "'\\*\\*=inf'"),
        (("backbone/**=-1",), "FACTOR >= 0"),
        (("backbon/**=1",), "matches no parameter.*backbone"),
    ],
)
def test_rates_that_say_nothing_are_refused(rates, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(OptimConfig(rates=rates), optax.constant_schedule(1), PARAMS)


def test_freezing_ends_at_the_epochs_that_say_so():
    config = OptimConfig(
        freeze=("backbone/**",),
        unfreeze=("1:backbone/norm/**", "3:backbone/conv/kernel"),
    )
    conv, bias, norm = (
        "backbone/conv/kernel",
        "backbone/conv/bias",
        "backbone/norm/scale",
    )
    found = [set(frozen_paths(config, PARAMS, epoch)) for epoch in range(4)]
    assert found == [{conv, bias, norm}, {conv, bias}, {conv, bias}, {bias}]
    assert frozen_paths(OptimConfig(), PARAMS, 0) == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"freeze": ("bone/**",)}, "'bone/\\*\\*' matches no parameter"),
        ({"unfreeze": ("5:neck/**",)}, "'neck/\\*\\*' matches no parameter"),
        ({"unfreeze": ("backbone/**",)}, "EPOCH:PATTERN, got 'backbone/\\*\\*'"),
        ({"unfreeze": ("1:",)}, "EPOCH:PATTERN"),
        ({"unfreeze": ("-1:head/**",)}, "EPOCH:PATTERN"),
    ],
)
def test_patterns_that_freeze_nothing_are_refused_at_once(fields, message):
    with pytest.raises(ValueError, match=message):
        frozen_paths(OptimConfig(**fields), PARAMS, 0)


@pytest.mark.parametrize(("name", "slots"), [("sgd", 1), ("adamw", 2)])
def test_frozen_parameters_have_no_slots(name, slots):
    config = OptimConfig(name=name)
    tx = make_optimizer(config, optax.constant_schedule(0.1), PARAMS)
    state = create_state({"params": PARAMS}, tx, frozen=("backbone/**",))
    shapes = [x.shape for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert shapes == slots * [(2, 1)]


def test_freezing_everything_is_refused():
    tx = optax.sgd(0.1)
    with pytest.raises(ValueError, match="freeze every parameter"):
        create_state({"params": PARAMS}, tx, frozen=("**",))


def test_label_smoothing_spreads_over_all_classes():
    logits = jnp.array([[2.0, 0.0, -1.0, 0.5]])
    log_p = np.log(np.exp(logits[0]) / np.exp(logits[0]).sum())
    plain = make_loss("softmax_cross_entropy")(logits, jnp.array([1]))
    smooth = make_loss("softmax_cross_entropy", smoothing=0.2)(logits, jnp.array([1]))
    assert float(plain[0]) == pytest.approx(-log_p[1], rel=1e-5)
    expected = -(0.8 * log_p[1] + 0.2 * log_p.mean())
    assert float(smooth[0]) == pytest.approx(expected, rel=1e-5)


def test_losses_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match=r"unknown loss 'softmax_cross'.*did you mean"):
        make_loss("softmax_cross")
    with pytest.raises(ValueError, match="no label smoothing"):
        make_loss("lenet_map", smoothing=0.1)
