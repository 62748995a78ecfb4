"""The benchmarks of detectors and segmentation networks: their numbers and tables."""

import json

import pytest
import readme
from benchmark_detectors import BENCHMARK as DETECTORS
from benchmark_segmentation import BENCHMARK as SEGMENTATION

SIDES = {"zoo", "torch_eager", "torch_eager_channels_last"}


@pytest.mark.parametrize("benchmark", [DETECTORS, SEGMENTATION], ids=lambda b: b.block)
def test_committed_numbers_are_whole_and_in_the_readme(benchmark):
    found = json.loads(benchmark.out.read_text())
    assert {name: {*cells} for name, cells in benchmark.networks.items()} == {
        name: {*network["cells"]} for name, network in found["networks"].items()
    }
    for network in found["networks"].values():
        for cell, numbers in network["cells"].items():
            assert {*numbers["seconds"]} == SIDES
            assert all(s > 0 for turns in numbers["seconds"].values() for s in turns)
            assert min(network["peak_megabytes"][cell].values()) > 0
    text = readme.README.read_text()
    assert readme.replace_block(text, benchmark.block, benchmark.render(found)) == text


def test_committed_numbers_of_operators_are_in_the_readme():
    pytest.importorskip("torch")
    import benchmark_detection_ops

    found = json.loads(benchmark_detection_ops.OUT.read_text())
    counts = benchmark_detection_ops.COUNTS
    assert {f"class_nms_{count}" for count in counts} <= {*found["milliseconds"]}
    table = benchmark_detection_ops.render(found)
    text = readme.README.read_text()
    assert readme.replace_block(text, "detection_ops", table) == text
