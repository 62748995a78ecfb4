"""Damages weights and interrupts runs: flipped bits, kills, clashes.

    python tests/benchmarks/damage.py flips [--count 400] [--seed 0]
    python tests/benchmarks/damage.py kills [--count 5]
    python tests/benchmarks/damage.py clashes [--count 8]
    python tests/benchmarks/damage.py cost [--megabytes 200]

Each prints one line of JSON; the status is 1 where something went unnoticed or was
lost. `flips` changes single bits of a run's checkpoints and of a safetensors file, and
reads them; `kills` kills runs with worker processes and resumes them; `clashes` starts
runs at the same time; `cost` measures how much longer a checkpoint is written with its
checksums than without.
"""

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import train.checkpoint
import zoo
from train.checkpoint import Checkpoints, find_sound_step
from train.history import read_history
from train.state import create_state
from zoo.paths import flatten
from zoo.spec import Card
from zoo.weights.checksums import check_step

MODEL = "lenet5_modern"
COMMANDS = ("flips", "kills", "clashes", "cost")


def save_run(run_dir: Path, steps: tuple[int, ...] = (1, 2)) -> dict[str, np.ndarray]:
    """Saves steps of a network as a run does; returns the last one's variables."""
    _, variables = zoo.create(MODEL, num_classes=3)
    tx = optax.sgd(0.1, momentum=0.9)
    card = Card(MODEL, 3, {}, zoo.get_spec(MODEL).preprocess)
    with Checkpoints(run_dir) as checkpoints:
        for step in steps:
            state = create_state(variables, tx).replace(step=jnp.int32(step))
            metrics = {"accuracy": 0.5 + step / 100, "loss": 1.0}
            checkpoints.save(state, step, card, metrics)
            checkpoints.wait()
    return {k: np.asarray(v) for k, v in flatten(variables).items()}


def flip(path: Path, rng: np.random.Generator) -> None:
    """Flips one bit of a file."""
    with open(path, "r+b") as file:
        place = int(rng.integers(path.stat().st_size))
        file.seek(place)
        byte = file.read(1)[0] ^ (1 << int(rng.integers(8)))
        file.seek(place)
        file.write(bytes([byte]))


def _same(found: dict, expected: dict[str, np.ndarray]) -> bool:
    found = flatten(found)
    return found.keys() == expected.keys() and all(
        np.asarray(found[k]).tobytes() == v.tobytes() for k, v in expected.items()
    )


def flips(folder: Path, count: int, seed: int) -> dict[str, int]:
    """Flips bits of checkpoints and of a safetensors file, one at a time.

    Returns:
      How many flips there were, how many were noticed (the read is refused, or the
      step takes no part), how many changed nothing that is read, and how many changed
      it without a word.
    """
    rng = np.random.default_rng(seed)
    expected = save_run(folder / "run")
    _, variables, card = zoo.create_with_card(MODEL, weights=str(folder / "run"))
    single = folder / "net.safetensors"
    zoo.weights.save_safetensors(single, variables, card)
    steps = folder / "run" / "checkpoints"
    files = sorted(p for p in (steps / "2").rglob("*") if p.is_file())
    # Bits are drawn over all bytes, and half of the flips over all files alike.
    sizes = np.array([p.stat().st_size for p in files], float)
    out = {"flips": 0, "noticed": 0, "harmless": 0, "unnoticed": 0}
    for i in range(count):
        if i % 4 == 3:
            path = single
        else:
            weights = sizes / sizes.sum() if i % 4 == 0 else None
            path = files[rng.choice(len(files), p=weights)]
        if not path.stat().st_size:
            continue
        before = path.read_bytes()
        flip(path, rng)
        try:
            if path == single:
                found = zoo.weights.load(MODEL, single).variables
            else:
                check_step(steps / "2")
                found, _, step = zoo.weights.read_checkpoint(folder / "run")
                assert step == 2
            kind = "harmless" if _same(found, expected) else "unnoticed"
        except ValueError:
            kind = "noticed"
            if path != single and find_sound_step(folder / "run") != 1:
                kind = "unnoticed"
        out["flips"] += 1
        out[kind] += 1
        path.write_bytes(before)
    return out


def _write_images(folder: Path) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 4)):
        for label in "ab":
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (8, 8)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{i}.png")
    return folder


def _command(images: Path, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "train", "digits_lenet5_modern"),
        *("--dataset", f"imagefolder:{images}", "--batch-size", "8"),
        *("--data.eval-batch-size", "8", "--augment", "--log-every", "1"),
        *options,
    ]


def _environment(folder: Path) -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    kept = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return kept | {
        "JAX_PLATFORMS": "cpu",
        "ZOO_CACHE": str(folder / "cache"),
        "PYTHONPATH": root,
    }


def _children(process: int) -> list[int]:
    """Lists the processes below one, of Linux."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process:
            child = int(path.parent.name)
            found += [child, *_children(child)]
    return found


def is_alive(process: int) -> bool:
    """Whether a process runs, of Linux; one that has ended and waits does not."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def kills(folder: Path, count: int, seed: int) -> dict[str, int]:
    """Kills runs with workers at random times, and a worker of another run.

    Returns:
      How many runs were killed, how many workers outlived them by ten seconds, how
      many runs could not be resumed, and whether a killed worker ended in words.
    """
    rng = np.random.default_rng(seed)
    images, env = _write_images(folder / "images"), _environment(folder)
    long = ("--epochs", "100000", "--data.placement", "stream", "--data.workers", "2")
    out = {"killed": 0, "orphans": 0, "not_resumed": 0, "worker_tracebacks": 0}

    def start(run: Path) -> subprocess.Popen:
        command = _command(images, *long, "--run-dir", str(run))
        # Of files, not pipes, which an orphan would keep open.
        with open(f"{run}.log", "w") as log:
            return subprocess.Popen(
                command, cwd=folder, env=env, stdout=log, stderr=log
            )

    def wait_for_steps(run: Path, process: subprocess.Popen, steps: int) -> None:
        until = time.monotonic() + 240
        while len(read_history(run)) < steps:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(Path(f"{run}.log").read_text()[-2000:])
            time.sleep(0.05)

    for i in range(count):
        run = folder / f"run{i}"
        process = start(run)
        wait_for_steps(run, process, 6)
        time.sleep(float(rng.uniform(0, 1)))
        workers = _children(process.pid)
        process.kill()
        process.wait()
        until = time.monotonic() + 10
        while any(map(is_alive, workers)) and time.monotonic() < until:
            time.sleep(0.1)
        out["killed"] += 1
        out["orphans"] += sum(map(is_alive, workers))
        for worker in filter(is_alive, workers):
            os.kill(worker, signal.SIGKILL)
        done = find_sound_step(run) or 0
        end = done // 4 + 2  # In epochs of four steps.
        resumed = subprocess.run(
            [
                *(sys.executable, "-m", "train", "resume", str(run)),
                *("--epochs", str(end), "--data.workers", "0"),
            ],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=240,
        )
        rows = read_history(run)
        steps = [row["step"] for row in rows if row["kind"] == "train"]
        if resumed.returncode or steps != [*range(1, 4 * end + 1)]:
            out["not_resumed"] += 1
            print(resumed.stderr[-2000:], file=sys.stderr)
    run = folder / "worker"
    process = start(run)
    wait_for_steps(run, process, 6)
    for worker in _children(process.pid):
        command = Path(f"/proc/{worker}/cmdline").read_text()
        if "spawn_main" in command:
            os.kill(worker, signal.SIGKILL)
            break
    process.wait(240)
    text = Path(f"{run}.log").read_text()
    worded = "error: one of the data.workers=2" in text
    out["worker_tracebacks"] = int("Traceback" in text or not worded)
    return out


def clashes(folder: Path, count: int) -> dict[str, int]:
    """Starts runs at the same moment, and resumes one run several times at once.

    Returns:
      How many were started together, how many folders they wrote, how many of these
      hold rows of others; how many resumed one run at once, and how many succeeded.
    """
    images, env = _write_images(folder / "images"), _environment(folder)
    short = ("--epochs", "2", "--save-every", "1")

    def together(commands: list[list[str]]) -> list[int]:
        running = [
            subprocess.Popen(
                command,
                cwd=folder,
                env=env,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for command in commands
        ]
        return [process.wait(500) for process in running]

    codes = together([_command(images, *short)] * count)
    runs = sorted((folder / "runs").iterdir())
    mixed = 0
    for run in runs:
        rows = read_history(run)
        steps = [row["step"] for row in rows if row["kind"] == "train"]
        mixed += steps != [*range(1, 9)]
    again = [*(sys.executable, "-m", "train", "resume", str(runs[0])), "--epochs", "40"]
    resumed = together([again] * count)
    rows = read_history(runs[0])
    steps = [row["step"] for row in rows if row["kind"] == "train"]
    return {
        "started": count,
        "failed": sum(map(bool, codes)),
        "folders": len(runs),
        "mixed": mixed + (steps != [*range(1, 161)]),
        "resumed_at_once": count,
        "succeeded": resumed.count(0),
    }


def cost(folder: Path, megabytes: int) -> dict[str, float]:
    """Measures a checkpoint of random numbers, which do not compress."""
    size = megabytes * 2**20 // 4 // 3
    key = jax.random.key(0)
    params = {"a": jax.random.normal(key, (size // 1000, 1000))}
    state = create_state({"params": params}, optax.adam(0.1))
    noise = jax.tree.map(
        lambda x: jax.random.normal(key, x.shape) if x.ndim else x, state.opt_state
    )
    state = jax.block_until_ready(state.replace(opt_state=noise))
    card = Card(MODEL, 3, {}, zoo.get_spec(MODEL).preprocess)
    summed, count = train.checkpoint.write_checksums, 9
    seconds = {True: [], False: []}
    with Checkpoints(folder / "run") as checkpoints:
        for step in range(2 * count):
            sums = step % 2 == 0
            train.checkpoint.write_checksums = summed if sums else _write_none
            start = time.perf_counter()
            checkpoints.save(state.replace(step=jnp.int32(step)), step, card)
            checkpoints.wait()
            seconds[sums].append(time.perf_counter() - start)
    train.checkpoint.write_checksums = summed
    with_sums, without = (float(np.median(seconds[sums])) for sums in (True, False))
    start = time.perf_counter()
    check_step(folder / "run" / "checkpoints" / str(2 * count - 2))
    return {
        "megabytes": megabytes,
        "save_seconds": round(with_sums, 3),
        "without_checksums": round(without, 3),
        "share": round(with_sums / without - 1, 4),
        "check_seconds": round(time.perf_counter() - start, 3),
    }


def _write_none(folder: Path) -> None:
    """Takes the place of `write_checksums`."""


def main() -> None:
    """Runs one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=COMMANDS, help="what to test")
    parser.add_argument("--count", type=int, help="number of repetitions")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--megabytes", type=int, default=200, help="size of the save")
    given = parser.parse_args()
    for name in ("zoo", "train", "absl"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.what == "flips":
            out = flips(folder, given.count or 400, given.seed)
            bad = out["unnoticed"]
        elif given.what == "kills":
            out = kills(folder, given.count or 5, given.seed)
            bad = out["orphans"] + out["not_resumed"] + out["worker_tracebacks"]
        elif given.what == "clashes":
            out = clashes(folder, given.count or 8)
            bad = out["failed"] or out["mixed"] or out["folders"] != out["started"]
            bad = bad or out["succeeded"] < 1
        else:
            out, bad = cost(folder, given.megabytes), 0
    print(json.dumps({"what": given.what, **out}))
    sys.exit(int(bool(bad)))


if __name__ == "__main__":
    main()
