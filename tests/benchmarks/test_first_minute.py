"""Tests that the benchmark of the first minute runs; no test measures speed."""

import benchmark_first_minute as benchmark
import pytest
import readme


@pytest.mark.apart
def test_a_call_is_measured_and_has_a_row():
    found = benchmark.measure("classes", 1)
    assert {*found} == {"cold", "warm"}
    for parts in found.values():
        assert [*parts] == [*benchmark.PARTS]
        assert min(parts.values()) > 0
    result = {"machine": benchmark.machine(), "rounds": 1}
    table = benchmark.render(result | {"calls": {"classes": found}})
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert len({row.count("|") for row in rows}) == 1
    assert f"{found['warm']['import']:.2f}" in rows[-1]
    text = readme.README.read_text()
    assert table in readme.replace_block(text, "first_minute", table)
