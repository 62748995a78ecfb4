"""The programs `canon-zoo` and `python -m train`, and what they say if parts lack."""

import os
import tomllib
from pathlib import Path

import pytest
from tiny_runs import ROOT, environment, run_python

SCRIPT = """
import sys
for name in {missing}:
    sys.modules[name] = None
from {module} import {function}
sys.argv = ["canon-zoo", *{arguments}]
{function}()
"""


def canon_zoo(cache, *arguments, missing=()):
    """Runs what the installed program runs."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, function = scripts["canon-zoo"].split(":")
    code = SCRIPT.format(
        module=module, function=function, arguments=[*arguments], missing=[*missing]
    )
    # Set, so that the program does not start anew: -c has no file to start.
    env = environment(cache, GLIBC_TUNABLES="", PYTHONPATH=str(ROOT))
    return run_python("-c", code, env=env)


def test_one_program_has_the_commands_of_both(tmp_path):
    done = canon_zoo(tmp_path, "list", "lenet5_modern")
    assert done.returncode == 0, done.stderr
    assert "lenet5_modern" in done.stdout
    done = canon_zoo(tmp_path, "train", "--help")
    assert done.returncode == 0, done.stderr
    assert "usage: canon-zoo train NAME" in done.stdout
    done = canon_zoo(tmp_path, "lost")
    assert done.returncode == 1
    assert "error: unknown command 'lost'" in done.stderr


def test_what_is_not_installed_is_said_with_the_line_that_installs_it(tmp_path):
    done = canon_zoo(tmp_path, "train", "resume", "x", missing=["cattrs"])
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "training needs cattrs, which is not installed" in done.stderr
    assert "pip install 'canon-zoo[train]'" in done.stderr
    # What needs no training needs no extra.
    done = canon_zoo(tmp_path, "list", "lenet5", missing=["cattrs", "grain"])
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path("/sys").is_dir(), reason="no folder that refuses root")
def test_a_read_only_home_is_named_with_what_replaces_it(tmp_path):
    env = environment(tmp_path, PYTHONPATH=str(ROOT), GLIBC_TUNABLES="", HOME="/sys")
    for name in ("ZOO_CACHE", "TFDS_DATA_DIR", "JAX_COMPILATION_CACHE_DIR"):
        env.pop(name, None)
    command = ("-m", "train", "digits_lenet5_modern_tiny", "--run-dir")
    done = run_python(*command, str(tmp_path / "run"), env=env)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "compiled steps are not kept" in done.stderr
    assert "digits cannot be prepared in /sys/tensorflow_datasets" in done.stderr
    assert "--data.data-dir" in done.stderr
    assert not (tmp_path / "run").exists()
    create = "import zoo; zoo.create('cifar_resnet32', weights='cifar10')"
    done = run_python("-c", create, env=env)
    assert "/sys/.cache/canon-zoo/weights/resnet32-" in done.stderr
    assert "ZOO_CACHE names another folder for weights" in done.stderr


def test_no_home_is_no_traceback(tmp_path):
    env = environment(tmp_path, PYTHONPATH=str(ROOT), GLIBC_TUNABLES="")
    del env["ZOO_CACHE"]
    env.pop("JAX_COMPILATION_CACHE_DIR", None)
    env["HOME"] = str(tmp_path / "file" / "below")
    (tmp_path / "file").write_text("")
    done = run_python("-m", "train", "resume", os.devnull, env=env)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "compiled steps are not kept" in done.stderr
    assert "ZOO_CACHE names another folder" in done.stderr
