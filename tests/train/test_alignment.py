"""Errors of alignment on drawn faces."""

import pytest
from tiny_runs import run_command

from train.alignment import measure_alignment


def test_the_pose_is_found_and_noise_costs_pixels_and_degrees():
    exact, noisy = (
        measure_alignment(noise=noise, pictures=40, size=64) for noise in (0.0, 3.0)
    )
    # In two dimensions a turned face stays turned.
    assert exact.pixels_3d < 0.6 * exact.pixels_2d
    assert max(exact.degrees) < 4
    assert exact.pixels_3d < noisy.pixels_3d < noisy.pixels_2d
    assert exact.pixels_2d < noisy.pixels_2d
    assert sum(noisy.degrees) > 1.5 * sum(exact.degrees)


def test_pixels_are_those_of_the_crop():
    small, large = (
        measure_alignment(noise=1.0, pictures=10, size=size) for size in (50, 100)
    )
    assert abs(large.pixels_3d / small.pixels_3d - 2) < 0.01
    assert abs(large.degrees[0] - small.degrees[0]) < 0.01


def test_the_command_prints_a_row_for_each_noise():
    code, out, err = run_command(
        "alignment", "--noise", 0, 2, "--pictures", 5, "--size", 64
    )
    assert code == 0, err
    rows = [line.split() for line in out.splitlines()[2:]]
    assert [float(row[0]) for row in rows] == [0, 2]
    assert float(rows[0][2]) < float(rows[1][2])


@pytest.mark.parametrize(
    ("option", "value"), [("--pictures", 0), ("--size", 0), ("--noise", "nan")]
)
def test_the_command_refuses_numbers_out_of_range(option, value):
    code, _, err = run_command("alignment", option, value)
    assert code == 1
    assert option in err
    assert str(value) in err
