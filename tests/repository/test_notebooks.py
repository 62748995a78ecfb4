"""The notebooks: current, ready for Colab, and running from beginning to end."""

import ast
import contextlib
import importlib.util
import inspect
import json
import os
import re
import subprocess
import venv
import zipfile
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")

FOLDER = Path(__file__).parents[2] / "colab"
_spec = importlib.util.spec_from_file_location("colab_build", FOLDER / "build.py")
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

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
    source = build.read_source(name)
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
    assert title.source.startswith("# ")
    assert f"({build.addresses()['colab']}/{name}.ipynb)" in title.source
    assert "colab-badge.svg" in title.source
    assert install.source == build.fill("# {{install}}")
    assert mode.source == 'MODE = "smoke"  # or "full"'
    assert notebook.metadata.accelerator == "TPU"
    assert notebook.metadata.colab == {"gpuType": "V5E1"}


@EACH
def test_notebook_leaves_the_runtime_as_it_is(name):
    code = [c.source for c in written(name).cells if c.cell_type == "code"]
    assert sum('"install"' in source for source in code) == 1
    text = (FOLDER / f"{name}.py").read_text() + (FOLDER / "install.py").read_text()
    assert build.addresses()["repository"] not in text
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
    expected = ["data", "runs"] if "load_dataset(" in source else ["runs"]
    assert sorted(path.name for path in folder.iterdir()) == expected
    assert all((folder / "data" / data_set).is_dir() for data_set in opened)
    errors = [out.text for out in outputs(executed) if out.get("name") == "stderr"]
    # Colab has ipywidgets, for which tqdm looks.
    assert [text for text in errors if "IProgress" not in text] == []


def write_wheel(folder: Path, name: str, version: str, *lines: str) -> Path:
    """Writes a wheel of one empty module."""
    module, stem = name.removeprefix("canon-"), name.replace("-", "_")
    path, info = folder / f"{stem}-{version}-py3-none-any.whl", f"{stem}-{version}"
    metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines]
    files = {
        f"{module}.py": "",
        f"{info}.dist-info/METADATA": "\n".join([*metadata, ""]),
        f"{info}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        f"{info}.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path


@pytest.mark.apart
@pytest.mark.parametrize("wanted", ["0.7", "0.9"])
def test_the_install_cell_falls_back_to_a_wheel_and_keeps_jax(wanted, tmp_path):
    index, folder = tmp_path / "index", tmp_path / "current"
    index.mkdir(), folder.mkdir()
    old, _ = (write_wheel(index, "jax", version) for version in ("0.7.2", "0.9.0"))
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP"))}
    env |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}

    def run(*arguments):
        return subprocess.run(
            [python, *arguments], cwd=folder, env=env, capture_output=True, text=True
        )

    assert run("-m", "pip", "install", old).returncode == 0
    repository = build.addresses()["repository"]
    cell = build.fill("# {{install}}").replace(repository, f"file://{tmp_path}/nowhere")
    assert repository not in cell
    alone = run("-c", cell)
    assert "Upload the file canon_zoo-" in alone.stderr
    requires = f"Requires-Dist: jax>={wanted}", "Provides-Extra: train"
    write_wheel(folder, "canon-zoo", "0.2.0", *requires)
    done = run("-c", f"{cell}\nimport zoo")
    assert f"git+file://{tmp_path}/nowhere" in done.stdout
    assert ("RuntimeError" in done.stderr) == (wanted == "0.9")
    said = run("-m", "pip", "list").stdout
    assert re.search(r"^jax +0.7.2$", said, re.M)
    assert ("canon-zoo" in said) == (wanted == "0.7")
