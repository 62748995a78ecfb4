"""Tests that the benchmark runs; no test measures speed."""

import json

import benchmark_table
import pytest
from tiny_runs import environment, run_python


def sides(group):
    return {*group["seconds"]}


def check_numbers(found):
    """Asserts that every side has its numbers and that these are consistent."""
    plan, start = found["plan"], found["start"]
    for group in [found["train"], *found["inference"].values()]:
        assert all(len(v) == plan["rounds"] for v in group["seconds"].values())
        assert all(s > 0 for values in group["seconds"].values() for s in values)
        assert sides(group) == {*group["images_per_second"]}
        ours = next(iter(sides(group) - {*group["ratio"]}))
        rates = group["images_per_second"]
        for side, ratio in group["ratio"].items():
            for kind in ("median", "best"):
                expected = rates[ours][kind] / rates[side][kind]
                assert ratio[kind] == pytest.approx(expected)
    for seconds in start["first_step_seconds"].values():
        assert len(seconds) == plan["starts"]
    for name in ("trace_seconds", "compile_seconds", "peak_rss_megabytes"):
        assert start[name] > 0
    assert start["temporary_megabytes"] > 0 < start["argument_megabytes"]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The file that a quick run writes."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("benchmark")
    out = folder / "numbers.json"
    env = environment(folder / "cache")
    command = ("tests/benchmarks/benchmark.py", "--quick", "--out", str(out))
    done = run_python(*command, env=env, timeout=600)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.apart
def test_quick_run_measures_every_side(quick):
    found = json.loads(quick.read_text())
    check_numbers(found)
    eager = {"torch_eager", "torch_eager_channels_last"}
    assert sides(found["train"]) == {"fit", "step"} | eager
    assert {*found["inference"]} == {"1", "8"}
    assert all(sides(g) == {"zoo"} | eager for g in found["inference"].values())
    assert found["same_network"]["parameters"] == 269_722


@pytest.mark.apart
def test_table_comes_from_the_file(quick):
    table = run_python(
        "tests/benchmarks/benchmark.py",
        "--table",
        "--out",
        str(quick),
        env=environment(quick.parent / "cache"),
    )
    assert table.returncode == 0, table.stderr
    found = json.loads(quick.read_text())
    assert table.stdout.strip() == benchmark_table.render(found)
    for line in table.stdout.splitlines():
        assert not line.startswith("|") or line.count("|") in (3, 4)
