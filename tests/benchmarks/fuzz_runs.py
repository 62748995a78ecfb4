"""Damaged files of runs and of weights, and what reads them."""

import copy
import functools
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
import torch
from damage import MODEL, save_run
from fuzz_damage import NASTY, Kind, Rng, damage, damage_json, dump

import zoo
from train.checkpoint import find_sound_step
from train.config import load_config, save_config
from train.configs import get_config
from train.history import read_history
from zoo.spec import Card


def write_config(rng: Rng, folder: Path) -> None:
    names = ("digits_lenet5", "voc_ssd300", "camvid_frrn", "imagenet_googlenet")
    save_config(get_config(str(rng.choice(names))), folder / "config.json")
    content = json.loads((folder / "config.json").read_bytes())
    if rng.random() < 0.1:
        content = copy.deepcopy(NASTY[rng.integers(len(NASTY))])
    else:
        content = damage_json(rng, content)
    (folder / "config.json").write_bytes(dump(rng, content))


def read_config(folder: Path) -> None:
    load_config(folder / "config.json")


def write_metrics(rng: Rng, folder: Path) -> None:
    rows = [
        {"kind": "train", "step": i, "epoch": i / 2, "loss": 1.5 / (i + 1)}
        for i in range(5)
    ]
    lines = []
    for row in rows:
        damaged = rng.random() < 0.3
        lines.append(json.dumps(damage_json(rng, row) if damaged else row).encode())
    data = b"\n".join(lines) + b"\n"
    words = (
        b"NaN",
        b"1e999",
        b"1" * 5000,
        b"[" * 5000,
        b"\xff\xfe",
        b"null\n",
        b"\x00",
    )
    (folder / "metrics.jsonl").write_bytes(
        damage(rng, data, words) if rng.random() < 0.6 else data
    )


def read_metrics(folder: Path) -> None:
    for row in read_history(folder):
        row["step"] + 1, row["kind"], row["epoch"]


@functools.cache
def fresh_variables() -> tuple[dict[str, Any], Card]:
    """Makes the variables of a small network, and their card."""
    key = jax.random.key(0)
    return zoo.create_with_card(MODEL, num_classes=3, key=key)[1:]


# What the header of a safetensors file says in other words.
HEADER = (
    *(
        b"F8_E4M3",
        b"I64",
        b"BOOL",
        b'"shape":[-',
        b'"shape":[1,',
        b"[0,",
        b"99999999999",
    ),
    *(b"/kernel", b"conv1", b"weight", b"__metadata__", b"{", b"}"),
)


@functools.cache
def make_safetensors(layout: str) -> bytes:
    """Makes a file with our names, with PyTorch's, or with those and no card."""
    variables, card = fresh_variables()
    if layout == "bare":
        return safetensors.numpy.save(zoo.weights.to_torch(MODEL, variables))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        zoo.weights.save_safetensors(path, variables, card, layout=layout)
        return path.read_bytes()


def write_safetensors(rng: Rng, folder: Path) -> None:
    path = folder / "case.safetensors"
    data = make_safetensors(str(rng.choice(["zoo", "torch", "bare"])))
    length = int.from_bytes(data[:8], "little")
    # Sorted, as the library writes entries in any order.
    header = dict(sorted(json.loads(data[8 : 8 + length]).items()))
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    rest = data[8 + length :]
    way = rng.random()
    if way < 0.4:  # the card
        texts = header["__metadata__"]
        for name, text in texts.items():
            try:
                content = damage_json(rng, json.loads(text))
                texts[name] = json.dumps(content)
            except (ValueError, TypeError):
                texts[name] = damage(rng, text.encode()).decode("utf-8", "replace")
    elif way < 0.7:
        header = damage_json(rng, header)
    else:
        names = [name for name in header if name != "__metadata__"]
        name = str(rng.choice(names))
        changed = rng.choice([f"{name}/x", name.rpartition("/")[0], "", "/", "a//b"])
        header[str(changed)] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        kinds = ("F8_E4M3", "F8_E5M2", "BF16", "F64", "I64", "BOOL", "U8", "F16")
        header[name] = {**header[name], "dtype": str(rng.choice(kinds))}
    text = json.dumps(header).encode("utf-8", "replace")
    data = len(text).to_bytes(8, "little") + text + rest
    if rng.random() < 0.3:
        head = len(text) + 8  # most of what can go wrong is there
        part = damage(rng, data[:head], HEADER) + data[head:]
        data = part if rng.random() < 0.5 else damage(rng, data)
    path.write_bytes(data)


def read_safetensors(folder: Path) -> None:
    path = folder / "case.safetensors"
    zoo.weights.load_safetensors(path)
    zoo.weights.load(MODEL, path)


def write_pth(rng: Rng, folder: Path) -> None:
    variables, _ = fresh_variables()
    state = {
        name: torch.from_numpy(np.array(value))
        for name, value in zoo.weights.to_torch(MODEL, variables, num_classes=3).items()
    }
    name = str(rng.choice([*state]))
    odd = _odd_tensors(state[name])
    way = rng.random()
    if way < 0.6:
        state[name] = odd[rng.integers(len(odd))]
    elif way < 0.8:
        wrapper = str(rng.choice(["state_dict", "model", "net", "x", "", "module"]))
        state = {wrapper: state, "epoch": odd[rng.integers(len(odd))]}
    else:
        keys = (0, 1.5, None, ("a", "b"), "a.b", "", "module." + name, b"x")
        state[keys[rng.integers(len(keys))]] = odd[rng.integers(len(odd))]
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=bool(rng.random() < 0.8))
    data = file.getvalue()
    path = folder / "case.pth"
    path.write_bytes(damage(rng, data) if rng.random() < 0.4 else data)


def _odd_tensors(tensor: torch.Tensor) -> list[Any]:
    flat = tensor.reshape(-1)
    return [
        tensor.to_sparse(),
        torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        tensor.to("meta"),
        torch.view_as_complex(torch.ones(2, 2)).conj(),
        torch.nested.nested_tensor([flat[:1], flat[:2]]),
        tensor.to(torch.float8_e4m3fn),
        tensor.to(torch.bfloat16),
        tensor.half(),
        tensor.double(),
        tensor.to(torch.bool),
        flat.expand(3, -1),
        torch.nn.Parameter(tensor),
        torch.zeros(0),
        torch.tensor(float("nan")),
        None,
        7,
        "text",
        [tensor],
        {"a": {"b": tensor}},
        {1: 2},
    ]


def read_pth(folder: Path) -> None:
    zoo.weights.read_state_dict(folder / "case.pth")
    zoo.weights.load(MODEL, folder / "case.pth")


@functools.cache
def make_run() -> tempfile.TemporaryDirectory:
    """Saves two steps of a run, in a folder that goes when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="fuzz")
    save_run(Path(folder.name))
    return folder


def write_checkpoint(rng: Rng, folder: Path) -> None:
    shutil.copytree(make_run().name, folder / "run")
    step = folder / "run/checkpoints/2"
    files = sorted(p for p in step.rglob("*") if p.is_file())
    path = files[rng.integers(len(files))]
    # As earlier versions saved it. (Of a damaged state orbax prints tracebacks then.)
    if "state" not in path.parts and rng.random() < 0.7:
        for sums in step.rglob("checksums.json"):
            sums.unlink()
    way = rng.random()
    if way < 0.2 or not path.exists():
        path.unlink(missing_ok=True)
    elif way < 0.5 and path.name in ("metadata", "metrics", "_METADATA"):
        content = damage_json(rng, json.loads(path.read_bytes()))
        path.write_bytes(dump(rng, content))
    else:
        path.write_bytes(damage(rng, path.read_bytes()))


def read_checkpoint(folder: Path) -> None:
    find_sound_step(folder / "run")
    zoo.weights.read_card(folder / "run")
    zoo.weights.read_checkpoint(folder / "run", 2)


KINDS = {
    "config": Kind(write_config, read_config),
    "metrics": Kind(write_metrics, read_metrics),
    "safetensors": Kind(write_safetensors, read_safetensors),
    "pth": Kind(write_pth, read_pth),
    "checkpoint": Kind(write_checkpoint, read_checkpoint),
}
