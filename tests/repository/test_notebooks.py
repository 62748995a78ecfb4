"""The notebooks: current, ready for Colab, and running from beginning to end."""

import ast
import contextlib
import importlib.util
import inspect
import json
import re
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")

FOLDER = Path(__file__).parents[2] / "colab"
_spec = importlib.util.spec_from_file_location("colab_build", FOLDER / "build.py")
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

REPOSITORY, TAG = "https://github.com/canon-zoo/canon-zoo", "v0.1.0"
MACHINE_PATH = re.compile(r"/(root|home|tmp|opt|work|usr|content|Users)/|[A-Z]:\\")

EACH = pytest.mark.parametrize("name", build.NOTEBOOKS)
# Minutes together: `pytest -m apart` runs them; the names they use are held always.
LONG = build.NOTEBOOKS[1:]


def written(name: str):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def outputs(notebook) -> list:
    return [out for cell in notebook.cells for out in cell.get("outputs", ())]


def count_pictures(notebook) -> int:
    return sum("image/png" in out.get("data", {}) for out in outputs(notebook))


@EACH
def test_notebook_is_made_from_its_source(name):
    source = jupytext.read(FOLDER / f"{name}.py", fmt="py:percent")
    cells = [(cell.cell_type, cell.source) for cell in source.cells]
    assert cells == [(cell.cell_type, cell.source) for cell in written(name).cells]
    assert build.is_current(name)


@EACH
def test_a_changed_cell_is_noticed(name, tmp_path):
    notebook = written(name)
    notebook.cells[-1].source += "\n1"
    nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    assert not build.is_current(name, tmp_path)


@EACH
def test_notebook_is_ready_for_colab(name):
    notebook = written(name)
    title, install, mode = notebook.cells[:3]
    page = REPOSITORY.removeprefix("https://").replace("github.com", "github")
    page = f"{page}/blob/{TAG}/colab/{name}.ipynb"
    assert title.source.startswith("# ")
    assert f"(https://colab.research.google.com/{page})" in title.source
    assert "colab-badge.svg" in title.source
    requirement = f'"canon-zoo[train] @ git+{REPOSITORY}@{TAG}"'
    assert f"    %pip install -q {requirement}" in install.source.splitlines()
    assert mode.source == 'MODE = "smoke"  # or "full"'
    assert notebook.metadata.accelerator == "TPU"
    assert notebook.metadata.colab == {"gpuType": "V5E1"}


@EACH
def test_notebook_leaves_the_runtime_as_it_is(name):
    code = [c.source for c in written(name).cells if c.cell_type == "code"]
    assert sum("install -q" in source for source in code) == 1
    for word in ("XLA_FLAGS", "jax[", "install -U", "--upgrade", "JAX_PLATFORMS"):
        assert not any(word in source for source in code), word
    # A package that is imported before the installation would stay as it was.
    assert not any("import jax" in source for source in code[:2])


def resolve(node: ast.expr, names: dict):
    """What `a.b.c` is, or KeyError where `a` is not of an import."""
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.Attribute):
        return getattr(resolve(node.value, names), node.attr)
    raise KeyError(node)


@EACH
def test_every_imported_name_and_keyword_exists(name):
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    names, calls = {}, 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), name, "exec"), names)
    for node in ast.walk(tree):
        with contextlib.suppress(KeyError):
            # An AttributeError names what is gone.
            if isinstance(node, ast.Attribute):
                resolve(node, names)
            elif isinstance(node, ast.Call):
                call = resolve(node.func, names)
                if not getattr(call, "__module__", "").startswith(("zoo", "train")):
                    continue
                keywords = {word.arg: None for word in node.keywords if word.arg}
                inspect.signature(call).bind_partial(*node.args, **keywords)
                calls += 1
    assert calls > 5


@EACH
def test_written_outputs_are_clean(name):
    notebook = written(name)
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 600_000
    assert count_pictures(notebook) >= 5
    for out in outputs(notebook):
        assert out.output_type in ("stream", "display_data", "execute_result")
        assert out.get("name", "stdout") == "stdout"
        data = {k: v for k, v in out.get("data", {}).items() if k != "image/png"}
        text = json.dumps([out.get("text", ""), data])
        assert not MACHINE_PATH.search(text), text
        assert "it/s" not in text
        assert "images/s" not in text


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.apart if name in LONG else ())
        for name in build.NOTEBOOKS
    ],
)
def test_notebook_runs_in_smoke_mode(name, tmp_path, monkeypatch):
    # The kernel shall tell of nothing but the notebook, and write nowhere else.
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    folder = tmp_path / "current"
    folder.mkdir()
    executed = build.execute(build.read_source(name), folder)
    assert count_pictures(executed) == count_pictures(written(name))
    # Data sets where one is opened by name, and what was trained; nothing else.
    source = (FOLDER / f"{name}.py").read_text()
    opened = {*re.findall(r'load_dataset\("(\w+)"', source)}
    expected = ["data", "runs"] if opened else ["runs"]
    assert sorted(path.name for path in folder.iterdir()) == expected
    assert all((folder / "data" / data_set).is_dir() for data_set in opened)
    errors = [out.text for out in outputs(executed) if out.get("name") == "stderr"]
    # Colab has ipywidgets, for which tqdm looks.
    assert [text for text in errors if "IProgress" not in text] == []
