"""Tests that the classifiers' benchmark runs; no test measures speed."""

import importlib.util
import json

import benchmark_classifiers
import benchmark_classifiers_table
import pytest
from benchmark_rounds import same_machine, summarize
from tiny_runs import environment, run_python


def check_numbers(found):
    """Asserts that every cell has our side and consistent numbers."""
    for numbers in found.values():
        assert numbers["machine"]["cpu"]
        for network in numbers["networks"].values():
            assert network["macs"] > 0
            assert len({*network["parameters"].values()}) == 1
            for cell, group in network["cells"].items():
                batch = int(cell.split("_")[1])
                expected = summarize(group["seconds"], batch, "zoo")
                products = group["products_per_second"]
                assert group == expected | {"products_per_second": products}
                assert min(products.values()) > 0
                lengths = {len(seconds) for seconds in group["seconds"].values()}
                assert len(lengths) == 1


@pytest.mark.apart
def test_quick_run_measures_and_keeps_other_numbers(tmp_path):
    out = tmp_path / "numbers.json"
    kept = {"cells": {"train_8": {"seconds": {}}}}
    out.write_text(json.dumps({"other": {"networks": {"vgg16": kept}}}))
    command = (
        "tests/benchmarks/benchmark_classifiers.py",
        "--quick",
        "--out",
        str(out),
    )
    done = run_python(*command, env=environment(tmp_path), timeout=600)
    assert done.returncode == 0, done.stderr

    found = json.loads(out.read_text())
    assert found.pop("other")["networks"]["vgg16"] == kept
    check_numbers(found)
    network = found["cpu"]["networks"]["alexnet_tv"]
    assert network["parameters"]["zoo"] == 61_100_840
    assert [*network["cells"]] == ["inference_1", "train_2"]
    theirs = {"torch_eager", "torch_eager_channels_last"}
    if "torch" in network["absent"]:
        theirs = set()
    elif importlib.util.find_spec("torchvision"):
        assert network["parameters"]["torch"] == 61_100_840
    for group in network["cells"].values():
        assert {*group["seconds"]} == {"zoo"} | theirs
    table = benchmark_classifiers_table.render(found)
    assert "| `alexnet_tv` | training, batch 2 |" in table
    widths = {line.count("|") for line in table.splitlines() if line.startswith("|")}
    assert widths == {5 + len(theirs)}


def make_found(**networks):
    machine = {"cpu": "a", "cores": 2, "device": "cpu", "platform": "cpu", "date": "-"}
    return {
        "cpu": {
            "machine": machine | {"jax": "1"},
            "plan": {"dtype": "float32"},
            "networks": networks,
        }
    }


def test_table_says_ratios_and_the_part_of_the_limit():
    products = {"zoo": 50_000.0, "torch": 60_000.0}

    def cell(batch, **seconds):
        return summarize(seconds, batch, "zoo") | {"products_per_second": products}

    network = {
        "macs": 1_000,
        "absent": {"torch": "not installed"},
        "cells": {
            "inference_1": cell(1, zoo=[0.1, 0.1], torch_eager=[0.2, 0.2]),
            "train_8": cell(8, zoo=[1.0, 1.0], torch_compile=[0.5, 0.5]),
        },
    }
    table = benchmark_classifiers_table.render(make_found(resnet50=network))
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert rows == [
        "| `resnet50` | inference, batch 1 | 10.0 | 2.00 |  | 17% |",
        "| `resnet50` | training, batch 8 | 8.0 |  | 0.50 | 40% |",
    ]
    assert "Not measured: torch: not installed." in table


def test_numbers_of_another_machine_are_not_mixed():
    here = {"cpu": "a", "cores": 2, "device": "cpu", "jax": "1", "jaxlib": "1"}
    assert same_machine({**here, "date": "earlier"}, here)
    for fact in here:
        assert not same_machine({**here, fact: "other"}, here)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cells", "train"], "'train' is no cell, such as inference_1 or train_8"),
        (["--cells", "infer_1"], "'infer_1' is no cell"),
    ],
)
def test_unknown_cell_is_an_error(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        benchmark_classifiers.main([*arguments, "--out", str(tmp_path / "out.json")])
    assert message in capsys.readouterr().err
