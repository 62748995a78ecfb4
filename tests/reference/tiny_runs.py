"""Small sets of images and small runs for the tests of training."""

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from PIL import Image

from train.__main__ import train
from train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from train.history import read_history
from zoo.paths import flatten

ROOT = Path(__file__).parents[2]


def write_images(
    root: Path,
    counts: dict[str, int],
    *,
    classes: str = "abc",
    size: int = 8,
    mode: str = "L",
) -> Path:
    """Writes split/class/number.png: noise with a bright stripe at the class's place.

    Args:
      root: New folder.
      counts: Images of each class, by split.
      classes: One letter a class.
      size: Height and width in pixels.
      mode: Pillow's, "L" or "RGB".
    """
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 120, (size, size)).astype(np.uint8)
                pixels[2 * label : 2 * label + 2] += 100
                Image.fromarray(pixels).convert(mode).save(folder / f"{i:02}.png")
    return root


def make_config(images: Path, **changes) -> TrainConfig:
    """LeNet on a folder of images; changes are fields of any part of the config."""
    parts = {
        "model": changes.pop("model", ModelConfig("lenet5_modern")),
        "data": DataConfig(f"imagefolder:{images}", batch_size=8, eval_batch_size=8),
        "optim": OptimConfig(learning_rate=0.02),
    }
    for name, part in parts.items():
        names = {f.name for f in dataclasses.fields(part)} & changes.keys()
        own = {n: changes.pop(n) for n in names}
        parts[name] = dataclasses.replace(part, **own)
    return TrainConfig(**{"epochs": 3, "log_every": 1, **parts, **changes})


def read_arrays(run_dir: Path, step: int) -> dict[str, np.ndarray]:
    """Reads the whole state of a checkpoint, by path, on whatever devices it was."""
    folder = run_dir / "checkpoints" / str(step) / "state"
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.metadata(folder).tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    args = ocp.args.PyTreeRestore(restore_args=as_numpy)
    found = handler.restore(folder, args=args)
    handler.close()
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def read_rows(run_dir: Path) -> list[dict]:
    """Reads the logged metrics, without what depends on the machine's speed."""
    rows = read_history(run_dir)
    return [{k: v for k, v in r.items() if k != "images_per_second"} for r in rows]


def assert_same_state(run_dir: Path, other: Path, step: int) -> None:
    """Asserts that two runs saved the same state, to the bit."""
    ours, theirs = read_arrays(run_dir, step), read_arrays(other, step)
    assert ours.keys() == theirs.keys()
    different = [k for k in ours if ours[k].tobytes() != theirs[k].tobytes()]
    assert not different


def flat(tree) -> dict[str, np.ndarray]:
    """Flattens a nested dict of arrays to numpy arrays by path."""
    return {k: np.asarray(v) for k, v in flatten(tree).items()}


def environment(cache: Path, **more: str) -> dict[str, str]:
    """The environment of a command in another process, which compiles as tests do."""
    ours = ("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("JAX_") or name.startswith(ours)
    }
    return kept | {"JAX_PLATFORMS": "cpu", "ZOO_CACHE": str(cache)} | more


def forced_devices(count: int) -> str:
    """XLA's flags for a command with several CPUs, which compiles as tests do."""
    flags = os.environ.get("XLA_FLAGS", "")
    return f"{flags} --xla_force_host_platform_device_count={count}"


def run_python(
    *arguments: str, env: dict[str, str], timeout: float = 240
) -> subprocess.CompletedProcess:
    """Runs Python in another process, at the root of the project."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=env,
        timeout=timeout,
        capture_output=True,
        text=True,
    )


@contextlib.contextmanager
def signal_during(run_dir: Path, number: int, *, rows: int) -> Iterator[None]:
    """Sends this process a signal when a run has logged so many rows."""
    over = threading.Event()

    def watch() -> None:
        while len(read_history(run_dir)) < rows:
            if over.wait(0.02):
                return
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def to_file(config: TrainConfig, path: Path) -> Path:
    """Writes a config where `train.config.load_config` reads it."""
    path.write_text(json.dumps(dataclasses.asdict(config)))
    return path


def run_command(*arguments: str, main: Callable | None = None) -> tuple[int, str, str]:
    """Runs `python -m train` in this process; returns exit code, stdout and stderr.

    Args:
      *arguments: Those of the command line.
      main: A program that reads `sys.argv`, to run instead.
    """
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["train", *map(str, arguments)]
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main() if main else train(sys.argv[1:])
    except SystemExit as stop:
        # As the interpreter does: a text goes to stderr, and the exit code is 1.
        code = stop.code or 0
        if isinstance(code, str):
            err.write(f"{code}\n")
            code = 1
    finally:
        sys.argv = before
    return code, out.getvalue(), err.getvalue()
