"""What README.md says is so."""

import re
from pathlib import Path

import pytest

import zoo

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()


def test_models_are_listed():
    models = (ROOT / "zoo" / "README.md").read_text()
    for name in zoo.list_models():
        assert f"`{name}`" in models, f"{name}: run `python tests/benchmarks/readme.py`"


def test_ci_runs_the_test_command_of_the_readme():
    line = next(x for x in TEXT.splitlines() if x.endswith("-m pytest"))
    ci = (ROOT / ".ci/run").read_text().splitlines()
    for command in line.split(" && "):
        # CI installs quietly.
        assert command in [x.replace("install -q ", "install ") for x in ci]


def test_python_example_names_what_there_is():
    code = re.search(r"```python\n(.*?)```", TEXT, re.S)[1]
    for name in re.findall(r"zoo\.([\w.]+)\(", code):
        thing = zoo
        for part in name.split("."):
            thing = getattr(thing, part)
        assert callable(thing)


@pytest.mark.parametrize("folder", [".", "zoo", "train", "tests/benchmarks"])
def test_relative_links_lead_somewhere(folder):
    text = (ROOT / folder / "README.md").read_text()
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (ROOT / folder / link).exists(), link
