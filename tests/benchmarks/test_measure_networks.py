"""Tests the measurements of networks and the content of their file."""

import json

import measure_networks
import measure_networks_table
import pytest
from benchmark_rounds import machine
from measure_networks_one import lower_training_step, total_memory

import zoo


def check_numbers(found):
    """Asserts that the numbers are there, and can be."""
    for name, network in found["networks"].items():
        if zoo.get_spec(name).task == "classification":
            seconds = network["first_call_seconds"]
            steps = ["create", "load", "trace", "compile", "run", "again"]
            assert [*seconds] == steps, name
            assert all(value > 0 for value in seconds.values()), name
            assert 0 < network["bfloat16_deviation"] < 0.5, name
        for memory in network.get("training_mebibytes", {}).values():
            sizes = [*memory.values()]
            assert sizes == sorted(sizes), name
        if memory := network.get("training_mebibytes"):
            assert [*memory] == ["plain", "remat"]


@pytest.mark.apart
def test_measures_what_is_missing(tmp_path, capsys):
    out = tmp_path / "numbers.json"
    kept = {"first_call_seconds": "of before", "bfloat16_deviation": "of before"}
    kept["training_mebibytes"] = "of before"
    here = {**machine(), "date": "earlier"}
    out.write_text(json.dumps({"machine": here, "networks": {"lenet5": kept}}))
    names = ["lenet5", "cifar_resnet20"]
    measure_networks.main([*names, "--quick", "--out", str(out)])
    assert "1/1 cifar_resnet20" in capsys.readouterr().err

    found = json.loads(out.read_text())
    assert found["networks"].pop("lenet5") == kept
    assert {*found["networks"]} == {"cifar_resnet20"}
    check_numbers(found)
    step = {"trace": 1.0, "compile": 23.4}
    found["networks"]["cifar_resnet20"]["training_step_seconds"] = step

    tables = measure_networks_table.render(found)
    assert "| training with batches of | 2 |" in tables
    assert "| `cifar_resnet20` |" in tables
    assert "| 1.0 + 23.4 |" in tables
    for line in tables.splitlines():
        assert not line.startswith("|") or line.count("|") in (3, 9)


def test_an_unknown_network_is_said_before_any_is_measured(tmp_path):
    out = tmp_path / "numbers.json"
    with pytest.raises(ValueError, match="unknown model 'lenet6'; did you mean lenet5"):
        measure_networks.main(["lenet5", "lenet6", "--out", str(out)])
    assert not out.exists()


def test_memory_counts_the_donated_state_once():
    compiled = lower_training_step("lenet5_modern", 2).compile()
    state = 2 * 4 * zoo.get_spec("lenet5_modern").params  # Parameters and momentum.
    assert state < total_memory(compiled) < 1.9 * state
