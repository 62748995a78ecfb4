"""Tests a training step that is compiled for four TPU chips, without any chip."""

import json

import compile_for_tpu
import pytest
from benchmark_rounds import side_process

import zoo

CELL = "resnet18/training/bfloat16/32x4"


@pytest.fixture(scope="module")
def compiled():
    pytest.importorskip("libtpu", reason="libtpu has no wheel for this Python")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS")  # The tests' own, for CPUs.
        with side_process("compile_for_tpu") as process:
            found = process("measure", CELL)
    assert "error" not in found, found
    return found


@pytest.fixture(scope="module")
def stored():
    return json.loads(compile_for_tpu.OUT.read_text())["cells"][CELL]


def test_memory_is_read_and_written_as_before(compiled, stored):
    assert compiled["gigabytes"] <= 1.02 * stored["gigabytes"]
    assert compiled["temporary_gib"] <= 1.02 * stored["temporary_gib"] + 0.01


def test_chips_exchange_gradients_and_batch_statistics_alone(compiled, stored):
    found = compiled["collectives"]
    assert set(found) == {"all-reduce"}
    assert found["all-reduce"]["count"] <= stored["collectives"]["all-reduce"]["count"]
    # Gradients in bfloat16; the sums of batch norm are few beside them.
    gradients = 2 * zoo.get_spec("resnet18").params
    assert found["all-reduce"]["bytes"] == pytest.approx(gradients, rel=0.05)
