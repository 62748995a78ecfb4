"""The time of a run, all of its parts together."""

import logging
import time

import pytest
from tiny_runs import make_config, write_images

from train.fit import fit, resume_run
from train.report import write_run_report
from train.run_dir import Clock


def test_parts_add_up(tmp_path):
    first = Clock(tmp_path, resuming=False, started=time.perf_counter() - 100)
    first.ran = True
    assert (first.parts, round(first.seconds)) == (1, 100)
    first.save()
    second = Clock(tmp_path, resuming=True, started=time.perf_counter() - 20)
    assert (second.parts, round(second.seconds)) == (1, 100)  # it has run no step
    second.ran = True
    assert (second.parts, round(second.seconds)) == (2, 120)
    second.save()
    # A new run in the same folder knows of none.
    third = Clock(tmp_path, resuming=False, started=time.perf_counter())
    assert (third.parts, round(third.seconds)) == (1, 0)


@pytest.mark.parametrize("content", [b"", b"null", b"3", b'["x"]', b"\xff"])
def test_a_damaged_file_is_logged(tmp_path, content, caplog):
    (tmp_path / "times.json").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        clock = Clock(tmp_path, resuming=True, started=time.perf_counter())
    assert clock.parts == 1
    assert "times.json: times of earlier parts are not known" in caplog.text


def test_the_report_of_a_resumed_run_has_the_time_of_all_parts(tmp_path):
    images = write_images(tmp_path / "images", {"train": 6, "test": 3})
    result = fit(make_config(images, epochs=2), tmp_path / "run", quiet=True)
    assert result.parts == 1
    again = resume_run(tmp_path / "run", step=2)
    assert again.parts == 2
    assert again.seconds > result.seconds
    write_run_report(again)
    assert " in 2 parts" in (tmp_path / "run/report.html").read_text()
    assert resume_run(tmp_path / "run").parts == 2
