"""FRRN: its table, its two streams, and what it costs to keep them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zoo
from zoo.ops.resize import resize
from zoo.segmentation.frrn import FRRNBackbone, upsample_double
from zoo.segmentation.segmenter import ScoreHead, Segmenter
from zoo.summary import list_endpoints, list_layers

ROWS = (("down", 2, 1, 2), ("down", 4, 2, 3), ("up", 2, 1, 2))


def make_tiny(**options):
    backbone = FRRNBackbone("tiny", ROWS, width=4, lanes=3, **options)
    return Segmenter(backbone, ScoreHead(2))


@pytest.fixture(scope="module")
def tiny(cheap_jit):
    images = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    variables = cheap_jit(make_tiny().init)(jax.random.key(1), images)
    return variables, images


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("frrn_a", "3x96/2 4x192/4 2x384/8 2x384/16 2x192/8 2x192/4 2x96/2"),
        (
            "frrn_b",
            "3x96/2 4x192/4 2x384/8 2x384/16 2x384/32 2x192/16 2x192/8 2x192/4 2x96/2",
        ),
    ],
)
def test_table_1(name, stages):
    found = list_endpoints(zoo.build(name), (64, 96, 3))
    units = [k for k in found if "frru" in k and not k.endswith("_z")]
    lines = []
    for unit in units:
        height, width, channels = found[unit]
        assert height / width == 64 / 96
        line = f"{channels}/{64 // height}"
        if lines and lines[-1][1] == line and not unit.endswith("frru1"):
            lines[-1][0] += 1
        else:
            lines.append([1, line])
        assert found[f"{unit}_z"] == (64, 96, 32)
    assert " ".join(f"{count}x{line}" for count, line in lines) == stages
    for i in range(1, 7):
        assert found[f"ru{i}"] == (64, 96, 48)
    assert found["logits"] == (64, 96, 19)


def test_biases_stand_where_no_batch_norm_follows():
    model = zoo.build("frrn_a")
    layers = list_layers(model, (32, 32, 3))
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    flat = jax.tree_util.tree_leaves_with_path(params["params"])
    biased = {
        jax.tree_util.keystr(path[:-1])
        for path, _ in flat
        if path[-1].key == "bias" and "bn" not in path[-2].key
    }
    assert len(biased) == 17 + 1  # Each unit's way back, and the scores.
    assert sum("shortcut" in layer.path for layer in layers) == 1


def test_nothing_is_cut_off_behind_an_addition(tiny, cheap_jit):
    variables, images = tiny
    out = cheap_jit(lambda v, x: make_tiny().apply(v, x, method="endpoints"))(
        variables, images
    )
    for name, value in out.items():
        is_negative = bool((value < 0).any())
        cut = name == "conv1" or ("frru" in name and not name.endswith("_z"))
        assert is_negative != cut, name
    # A unit adds to the residual stream what is the same in each square.
    before, after = out["down2_frru1_z"], out["down4_frru1_z"]
    added = (after - before).reshape(2, 2, 4, 3, 4, 3)
    np.testing.assert_allclose(
        added, jnp.broadcast_to(added[:, :, :1, :, :1], added.shape), atol=1e-5
    )
    assert float(jnp.abs(added).max()) > 0.01


@pytest.mark.apart
def test_remat_is_of_each_stage(tiny):
    variables, images = tiny

    def grads(remat):
        def loss(params):
            logits, new = make_tiny(remat=remat).apply(
                {**variables, "params": params}, images, True, mutable=["batch_stats"]
            )
            return jnp.square(logits).sum(), new

        return jax.grad(loss, has_aux=True)

    plain, again = (grads(remat) for remat in (False, True))
    # In front, behind, and one for each row of the table.
    counts = [
        str(jax.make_jaxpr(f)(variables["params"])).count("remat")
        for f in (plain, again)
    ]
    assert counts[1] - counts[0] >= len(ROWS) + 2


@pytest.mark.parametrize("size", [(1, 1), (3, 4)])
def test_doubling_is_resizing(size):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    expected = resize(x, (2 * size[0], 2 * size[1]), antialias=False)
    np.testing.assert_allclose(upsample_double(x), expected, atol=1e-6)
    assert upsample_double(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_bad_input():
    with pytest.raises(ValueError, match=r"frrn_b .*multiples of 32.*\[1, 64, 80, 3\]"):
        list_endpoints(zoo.build("frrn_b"), (64, 80, 3))
    with pytest.raises(ValueError, match="16 x 16 pixels or more"):
        list_endpoints(zoo.build("frrn_a"), (8, 8, 3))
    with pytest.raises(ValueError, match="lanes=0 must be at least 1"):
        zoo.build("frrn_a", lanes=0)
    with pytest.raises(ValueError, match="num_classes must be 0"):
        zoo.build("frrn_a", num_classes=-1)
