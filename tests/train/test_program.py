"""The programs `canon-zoo` and `python -m train`, and what they say if parts lack."""

import importlib
import os
import tomllib
from pathlib import Path

import pytest
from tiny_runs import ROOT, environment, run_command, run_python

# Runs the installed program's function twice, where the extra of training is missing.
WITHOUT_EXTRA = """
import sys
sys.modules["cattrs"] = sys.modules["grain"] = None
from {module} import {function}
sys.argv = ["canon-zoo", "list", "lenet5"]
{function}()
del sys.modules["grain"]
sys.argv = ["canon-zoo", "train", "resume", "x"]
{function}()
"""


def find_entry_point():
    """Returns the module and the function of the installed program."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    return scripts["canon-zoo"].split(":")


def test_one_program_has_the_commands_of_both():
    module, function = find_entry_point()
    main = getattr(importlib.import_module(module), function)
    code, out, err = run_command("list", "lenet5_modern", main=main)
    assert code == 0, err
    assert "lenet5_modern" in out
    code, out, err = run_command("train", "--help", main=main)
    assert code == 0, err
    assert "usage: canon-zoo train NAME" in out
    code, _, err = run_command("lost", main=main)
    assert code == 1
    assert "error: unknown command 'lost'" in err


def test_what_is_not_installed_is_said_with_the_line_that_installs_it(tmp_path):
    module, function = find_entry_point()
    code = WITHOUT_EXTRA.format(module=module, function=function)
    done = run_python("-c", code, env=environment(tmp_path, PYTHONPATH=str(ROOT)))
    # What needs no training needs no extra.
    assert "lenet5" in done.stdout
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "training needs cattrs, which is not installed" in done.stderr
    assert "pip install 'canon-zoo[train]'" in done.stderr


TRAIN_AND_CREATE = """
import sys
from train.__main__ import train
try:
    train(sys.argv[1:])
except SystemExit as stop:
    print(stop.code, "\\n---", file=sys.stderr)
import zoo
zoo.create("cifar_resnet32", weights="cifar10")
"""


@pytest.mark.skipif(not Path("/sys").is_dir(), reason="no folder that refuses root")
def test_a_read_only_home_is_named_with_what_replaces_it(tmp_path):
    env = environment(tmp_path, PYTHONPATH=str(ROOT), HOME="/sys")
    for name in ("ZOO_CACHE", "TFDS_DATA_DIR", "JAX_COMPILATION_CACHE_DIR"):
        env.pop(name, None)
    command = ("-c", TRAIN_AND_CREATE, "digits_lenet5_modern_tiny", "--run-dir")
    done = run_python(*command, str(tmp_path / "run"), env=env)
    trained, _, created = done.stderr.partition("\n---\n")
    assert "Traceback" not in trained
    assert "compiled steps are not kept" in trained
    assert "error: digits cannot be prepared in /sys/tensorflow_datasets" in trained
    assert "--data.data-dir" in trained
    assert not (tmp_path / "run").exists()
    assert "/sys/.cache/canon-zoo/weights/resnet32-" in created
    assert "ZOO_CACHE names another folder for weights" in created


@pytest.mark.apart
def test_no_home_is_no_traceback(tmp_path):
    env = environment(tmp_path, PYTHONPATH=str(ROOT))
    del env["ZOO_CACHE"]
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    env["HOME"] = str(tmp_path / "file" / "below")
    (tmp_path / "file").write_text("")
    done = run_python("-m", "train", "resume", os.devnull, env=env)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "compiled steps are not kept" in done.stderr
    assert "ZOO_CACHE names another folder" in done.stderr
