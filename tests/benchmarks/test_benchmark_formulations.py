"""Tests that the formulations' benchmark runs; no test measures speed."""

import benchmark_formulations
import jax
import jax.numpy as jnp
import pytest

from zoo import cpu
from zoo.cpu.convolution import FORMULATIONS
from zoo.ops.convolution import convolve
from zoo.ops.dense import dense


def trace(function, *shapes, **options):
    arrays = [jnp.ones(shape) for shape in shapes]
    return str(jax.make_jaxpr(lambda *a: function(*a, **options))(*arrays))


def test_every_formulation_has_a_cell():
    measured = {cell.split("/")[0] for cell in benchmark_formulations.CELLS}
    assert measured == {*FORMULATIONS, "few_rows", "barriers", "layouts"}


@pytest.mark.parametrize(
    ("name", "traced"),
    [
        ("winograd", lambda: trace(convolve, (8, 40, 40, 128), (3, 3, 128, 128))),
        (
            "layouts",
            lambda: trace(
                jax.grad(lambda x, k: convolve(x, k).sum()), (1, 5, 5, 2), (3, 3, 2, 2)
            ),
        ),
        ("few_rows", lambda: trace(dense, (2, 40), (40, 50))),
    ],
)
def test_a_formulation_is_left_out_and_comes_back(name, traced):
    kept = dict(FORMULATIONS), cpu.multiply_few_rows
    before = traced()
    assert benchmark_formulations.without(name, traced) != before
    assert (FORMULATIONS, cpu.multiply_few_rows) == kept
    assert traced() == before


def test_table_says_the_gain():
    machine = {"cpu": "a", "cores": 2, "device": "cpu", "platform": "cpu", "date": "-"}
    took = {"with": [10.0, 11.0, 12.0], "without": [20.0, 22.0, 30.0]}
    cells = {"winograd/vgg16/inference_1": took}
    found = {"a": {"machine": machine, "milliseconds": cells}}
    table = benchmark_formulations.render(found)
    assert (
        "| winograd | `vgg16` | inference, batch 1 | a | 11.0 | 22.0 | 2.00 |" in table
    )
