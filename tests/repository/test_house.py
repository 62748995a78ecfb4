"""The rules of the house: which room may import which."""

import ast
import fnmatch
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = sorted(
    path.relative_to(ROOT)
    for folder in ("zoo", "train")
    for path in (ROOT / folder).rglob("*.py")
)

# A room is a file or a folder; what is in it imports from lower floors alone, or from
# its own room.
FLOORS = {
    "zoo/spec": 0,
    "zoo/paths": 0,
    "zoo/cpu": -1,
    "zoo/ops": 0,
    "zoo/metrics": 0,
    "zoo/checks": 0,
    "zoo/compilation_cache": 0,
    "zoo/initialization": 0,
    "zoo/layers": 1,
    "zoo/classification": 2,
    "zoo/detection": 3,
    "zoo/segmentation": 3,
    "zoo/face": 3,
    "zoo/preprocess": 3,
    "zoo/registry": 4,
    "zoo/transfer": 4,
    "zoo/features": 1,
    "zoo/classify": 4,
    "zoo/decode": 0,
    "zoo/figures": 0,
    "zoo/predict": 6.5,
    "zoo/predictions": 0.5,
    "zoo/descriptors": 4,
    "zoo/detect": 5,
    "zoo/segment": 4,
    "zoo/protocols": 5,
    "zoo/summary": 5.5,
    "zoo/weights": 5,
    "zoo/verify": 6,
    "zoo/api": 6,
    "zoo/export": 6.6,
    "zoo/onnx": 6.5,
    "zoo/regions": 6,
    "zoo/explain": 6,
    "zoo/__init__": 7,
    "zoo/__main__": 8,
    "train/__init__": 0,
    "train/config": 5,
    "train/data": 6,
    "train/alignment": 7,
    "train/descriptors": 6,
    "train/state": 6,
    "train/optim": 6,
    "train/figures": 6,
    "train/history": 6,
    "train/checkpoint": 7,
    "train/run_dir": 7,
    "train/task": 9,
    "train/warm_start": 8,
    "train/steps": 10,
    "train/run": 11,
    "train/evaluate": 11,
    "train/loaders": 11,
    "train/report": 12,
    "train/tasks": 13,
    "train/configs": 14,
    "train/experiment": 14,
    "train/multi_crop": 14,
    "train/splits": 15,
    "train/choose": 16,
    "train/fit": 15,
    "train/rcnn": 16,
    "train/studies": 16,
    "train/visualize": 16,
    "train/commands": 17,
    "train/cli": 18,
    "train/__main__": 19,
}

# Heavy packages: the only rooms that import them, and whether within functions alone.
OWNERS = {
    "tensorflow": {},
    "tensorflow_datasets": {"train/data": "anywhere"},
    "grain": {"train/data": "anywhere"},
    "absl": {"train/data": "anywhere"},
    "torch": {"zoo/weights": "lazily", "zoo/verify": "lazily"},
    "torchvision": {"zoo/verify": "lazily"},
    "orbax": {"zoo/weights": "lazily", "train/checkpoint": "anywhere"},
    "matplotlib": {
        "zoo/figures": "lazily",
        "train/figures": "lazily",
        "train/studies": "anywhere",
    },
    "pycocotools": {"zoo/metrics": "lazily"},
    "sklearn": {
        "train/data": "anywhere",
        "train/rcnn": "anywhere",
        "train/descriptors": "anywhere",
        "train/tasks": "anywhere",
        "train/studies": "lazily",
    },
    "jax2onnx": {"zoo/onnx": "lazily"},
    "onnx": {"zoo/onnx": "lazily"},
    "dlib": {"train/data": "lazily"},
    "cv2": {"train/data": "lazily"},
}
TOP_LEVEL = {
    "pyproject.toml",
    "zoo",
    "train",
    "tests",
    "colab",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "CITATION.cff",
}


def parse(path):
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def find_room(module):
    """The room of the module "zoo.weights.files", here "zoo/weights"."""
    path = Path(*module.split("."))
    for room in (*map(str, (path, *path.parents)), f"{path}/__init__"):
        if room in FLOORS:
            return room
    raise AssertionError(f"{module} is in no room; give it a floor")


def list_imports(path):
    """Yields (imported module, whether it is imported within a function)."""
    tree = parse(path)
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import; write the whole name"
            names = []
            for alias in node.names:
                inner = f"{node.module}.{alias.name}".replace(".", "/")
                is_module = (ROOT / f"{inner}.py").exists() or (ROOT / inner).is_dir()
                names.append(inner.replace("/", ".") if is_module else node.module)
        else:
            continue
        for name in names:
            yield name, id(node) in lazy


def module_of(path):
    return ".".join(path.with_suffix("").parts)


def test_imports_go_down():
    wrong = []
    for path in CODE:
        room = find_room(module_of(path))
        for name, _ in list_imports(path):
            if name.split(".")[0] in ("zoo", "train"):
                other = find_room(name)
                if other != room and FLOORS[other] >= FLOORS[room]:
                    wrong.append(
                        f"{path}, floor {FLOORS[room]}: {name}, floor {FLOORS[other]}"
                    )
    assert not wrong


def test_heavy_packages_stay_in_their_rooms():
    wrong = []
    for path in CODE:
        room = find_room(module_of(path))
        for name, is_lazy in list_imports(path):
            package = name.split(".")[0]
            if package == "train" and path.parts[0] == "zoo":
                wrong.append(f"{path}: {name}")
            if package in OWNERS:
                allowed = OWNERS[package].get(room)
                if allowed != "anywhere" and not (allowed == "lazily" and is_lazy):
                    wrong.append(f"{path}: {name}; allowed is {OWNERS[package]}")
    assert not wrong


def test_every_floor_has_its_room():
    rooms = {find_room(module_of(path)) for path in CODE}
    assert {*FLOORS} == rooms


def test_tests_are_in_a_tree():
    assert [p.name for p in (ROOT / "tests").glob("*.*")] == ["conftest.py"]


def test_top_level_has_only_the_agreed_names():
    ignored = (ROOT / ".gitignore").read_text().split()
    names = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    names = {
        n for n in names if not any(fnmatch.fnmatch(n, i.strip("/")) for i in ignored)
    }
    assert names <= TOP_LEVEL
    assert {"pyproject.toml", "zoo", "train", "tests"} <= names


def test_zoo_imports_nothing_heavy():
    # Flax itself imports absl.
    heavy = {*OWNERS, "train", "tensorstore", "tensorboardX", "cattrs"} - {"absl"}
    code = f"import sys, zoo; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip() == "[]"
