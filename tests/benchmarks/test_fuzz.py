"""Damaged files: some cases of each kind on every run of the tests."""

import json

import numpy as np
from fuzz import KINDS, run_case, run_cases
from fuzz_damage import damage

SECONDS = 4


def test_every_kind_is_read_or_refused_by_name():
    done, faults = run_cases([*KINDS], seed=0, cases=0, seconds=SECONDS)
    assert faults == []
    assert min(done.values()) > 0


def test_faults_are_found(tmp_path, monkeypatch):
    def broken(folder):
        return json.loads((folder / "config.json").read_bytes())["model"]["name"]

    for error in (broken, lambda folder: int("no name of a file")):
        monkeypatch.setitem(KINDS, "config", KINDS["config"]._replace(read=error))
        found = [run_case("config", 0, i, tmp_path) for i in range(30)]
        assert any(found)


def test_cases_follow_from_the_seed():
    one, same, other = (
        damage(np.random.default_rng(seed), bytes(range(200))) for seed in (1, 1, 2)
    )
    assert one == same != other
