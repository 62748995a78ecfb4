"""Makes the notebooks: each .py beside this file becomes an executed .ipynb.

    python colab/build.py             execute all in smoke mode and write them
    python colab/build.py NAME ...    the same for some of them
    python colab/build.py --check     only say whether the written ones are current
    python colab/build.py --text      write their text anew, and keep the outputs

The sources are in jupytext's percent format. In them {{install}} stands for
`install.py`, {{colab}} and {{pages}} for the addresses of notebooks and files: the
address of the project is that of pyproject.toml, and nowhere else.

The notebooks keep the outputs of smoke mode, without what differs from run to run:
progress bars, execution counts, and what a cell tagged `clear-output` shows. Pictures
have 256 colors, so that they are small.
"""

import base64
import io
import sys
import tempfile
import tomllib
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
NOTEBOOKS = (
    "00_quickstart",
    "01_transfer_learning",
    "02_pretrained_and_features",
    "03_detection",
    "04_segmentation",
    "05_faces",
    "06_what_networks_see",
    "07_the_lecture",
)
TIMEOUT = 600  # Seconds for one cell.


def addresses() -> dict[str, str]:
    """Returns what the words in double braces stand for."""
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    repository = project["urls"]["Repository"]
    # The version is a literal in the package, which need not be installed here.
    text = (FOLDER.parent / "zoo" / "__init__.py").read_text()
    version = text.split('__version__ = "')[1].split('"')[0]
    tag, page = f"v{version}", repository.removeprefix("https://github.com/")
    return {
        "repository": repository,
        "version": version,
        "tag": tag,
        "pages": f"{repository}/blob/{tag}",
        "colab": f"https://colab.research.google.com/github/{page}/blob/{tag}/colab",
    }


def fill(text: str) -> str:
    """Replaces the words in double braces."""
    text = text.replace("# {{install}}", (FOLDER / "install.py").read_text().rstrip())
    for name, value in addresses().items():
        text = text.replace(f"{{{{{name}}}}}", value)
    return text


def read_source(name: str) -> nbformat.NotebookNode:
    """Reads a source as a notebook without outputs.

    Args:
      name: One of `NOTEBOOKS`.

    Returns:
      The notebook; its cells have their position as id, so that it is always the same.
    """
    notebook = jupytext.read(FOLDER / f"{name}.py", fmt="py:percent")
    keep = ("accelerator", "colab", "kernelspec")
    notebook.metadata = {k: notebook.metadata[k] for k in keep}
    for i, cell in enumerate(notebook.cells):
        cell.id, cell.source = f"cell-{i:02}", fill(cell.source)
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
    return notebook


def execute(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Runs a notebook, with `folder` as the current one.

    Raises:
      nbclient.exceptions.CellExecutionError: A cell failed.
    """
    resources = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, timeout=TIMEOUT, resources=resources).execute()


def tidy(executed: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Takes away what differs from run to run and says nothing; shrinks pictures."""
    # The kernel's version, and the times of each cell, are the executing machine's.
    executed.metadata.pop("language_info", None)
    for cell in executed.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        if "clear-output" in cell.metadata.get("tags", ()):
            cell.outputs = []
        cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
        for out in cell.outputs:
            if "execution_count" in out:
                out.execution_count = None
            if "image/png" in out.get("data", {}):
                out.data["image/png"] = reduce_colors(out.data["image/png"])
    return executed


def reduce_colors(picture: str) -> str:
    """Makes a PNG in base64 one of 256 colors, without grain, which would be large."""
    rgb = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    buffer = io.BytesIO()
    few = rgb.quantize(256, dither=Image.Dither.NONE)
    few.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def is_current(name: str, folder: Path = FOLDER) -> bool:
    """Compares a written notebook's cells and metadata with those of its source.

    Args:
      name: One of `NOTEBOOKS`.
      folder: Where the notebook was written.
    """
    path = folder / f"{name}.ipynb"
    if not path.exists():
        return False
    written = nbformat.read(path, as_version=4)
    for cell in written.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    return written == read_source(name)


def write_text(name: str) -> None:
    """Writes the text of a notebook anew, with the outputs that it has.

    Raises:
      ValueError: There are more cells or fewer, so that outputs cannot be kept.
    """
    path, notebook = FOLDER / f"{name}.ipynb", read_source(name)
    written = nbformat.read(path, as_version=4)
    for cell, old in zip(notebook.cells, written.cells, strict=True):
        if cell.cell_type == "code":
            cell.outputs = old.outputs
    nbformat.write(notebook, path)


def main(arguments: list[str]) -> None:
    """Builds all notebooks or those that are named; see above."""
    if arguments == ["--check"]:
        stale = [name for name in NOTEBOOKS if not is_current(name)]
        if stale:
            sys.exit(f"{stale} differ from their sources: run python colab/build.py")
        return
    if arguments == ["--text"]:
        for name in NOTEBOOKS:
            write_text(name)
        return
    for name in arguments or NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            notebook = tidy(execute(read_source(name), Path(folder)))
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")
        print(f"{name}.ipynb: {(FOLDER / f'{name}.ipynb').stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    main(sys.argv[1:])
