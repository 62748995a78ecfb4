"""What the benchmarks share: processes of the sides, timing and ratios.

Each side has its own process, which waits while another one is measured: the threads of
two libraries in one process would disturb each other.
"""

import contextlib
import datetime
import importlib
import itertools
import math
import multiprocessing
import os
import pkgutil
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from huge_pages import VARIABLE

Call = Callable[..., Any]


@contextlib.contextmanager
def side_process(module: str) -> Iterator[Call]:
    """Starts a process; yields a function that calls those of `module` in it."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=_leave_with_parent) as pool:
        yield lambda *arguments: pool.submit(_call, module, *arguments).result()


@contextlib.contextmanager
def start_side(side: str, *arguments: Any) -> Iterator[Call]:
    """Creates a side in a process of its own.

    Args:
      side: Module and class, such as "benchmark_torch:Side".
      *arguments: Arguments of the class.

    Yields:
      A function of the name of a method or attribute and the method's arguments.
    """
    with side_process("benchmark_rounds") as process:
        process("_create_side", side, *arguments)
        yield partial(process, "_call_side")


_side: list[Any] = []  # of this process


def _create_side(side: str, *arguments: Any) -> None:
    _side[:] = [pkgutil.resolve_name(side)(*arguments)]


def _call_side(name: str, *arguments: Any) -> Any:
    found = getattr(_side[0], name)
    return found(*arguments) if callable(found) else found


def _leave_with_parent() -> None:
    # If a benchmark is killed, its sides must not compute beside the next benchmark.
    parent = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _call(module: str, name: str, *arguments: Any) -> Any:
    # Imported only in the other process.
    return getattr(importlib.import_module(module), name)(*arguments)


def machine() -> dict[str, Any]:
    """Describes the machine and the packages, and warns if others use the machine.

    Call it before measuring, so that the load is that of other programs.
    """
    import jax

    from train.experiment import versions

    load = os.getloadavg()[0]
    if load > 0.5:
        say(f"warning: the machine is not idle (load {load:.1f}); times are too long.")
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")]
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "vectors": _vector_width(lines),
        "cores": os.cpu_count(),
        "load_before": load,
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "malloc": os.environ.get(VARIABLE, ""),
        "python": platform.python_version(),
        **versions(),
    }


def _vector_width(lines: list[str]) -> str:
    """Names the widest vectors of an x86 processor; "" where that is not known."""
    flags = next((x.split() for x in lines if x.startswith("flags")), [])
    widths = {"avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX"}
    return next((name for flag, name in widths.items() if flag in flags), "")


def same_machine(known: dict[str, Any], here: dict[str, Any]) -> bool:
    """Whether numbers of two runs are comparable."""
    facts = ("cpu", "vectors", "cores", "device", "jax", "jaxlib", "malloc")
    return all(known.get(fact, "") == here.get(fact, "") for fact in facts)


def where(facts: dict[str, Any], names: Sequence[str]) -> str:
    """Describes in a table the machine, versions of packages and the date.

    Args:
      facts: Result of `machine`.
      names: Packages whose versions are included, if they are known.
    """
    device = [facts["device"]] if facts["platform"] != "cpu" else []
    versions = [f"{n} {facts[n]}" for n in names if n in facts]
    pages = [f"`{VARIABLE}={facts['malloc']}`"] if facts.get("malloc") else []
    cpu = " with ".join(filter(None, (facts["cpu"], facts.get("vectors"))))
    parts = (*device, cpu, f"{facts['cores']} cores", *versions, *pages)
    return ", ".join([*parts, facts["date"]])


def seconds_per_call(call: Callable[[], Any], calls: int) -> float:
    """Returns the mean seconds of calls, after two that are not timed."""
    call(), call()
    started = time.perf_counter()
    for _ in itertools.repeat(None, calls):
        call()
    return (time.perf_counter() - started) / calls


def seconds_per_call_within(call: Callable[[], Any], seconds: float) -> float:
    """Returns the mean seconds of calls within a time, after as long a warm-up.

    The first calls take longer: they get back the memory that another side released.
    """
    for _ in ("not counted", "counted"):
        started = ended = time.perf_counter()
        calls = 0
        while not calls or ended - started < seconds:
            call()
            calls += 1
            ended = time.perf_counter()
    return (ended - started) / calls


def measure_in_turns(
    calls: dict[str, Callable[[], Any]], seconds: float
) -> dict[str, list[float]]:
    """Returns the shortest [wall, processor] milliseconds of each call over turns.

    Args:
      calls: Functions to measure, by name.
      seconds: Approximate time for all of them.
    """
    best = {name: [math.inf, math.inf] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    for rounds in range(30):
        if rounds >= 3 and time.perf_counter() > end:
            break
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            took = time.perf_counter() - wall, time.process_time() - cpu
            best[name] = [
                min(a, round(1e3 * b, 2)) for a, b in zip(best[name], took, strict=True)
            ]
    return best


def summarize(
    seconds: dict[str, list[float]], images: int, ours: str
) -> dict[str, dict[str, Any]]:
    """Turns the seconds of each side into images per second and ratios.

    Args:
      seconds: Seconds of a step or call, by side and round.
      images: Number of images in a step or call.
      ours: The side whose speed is divided by that of each other side.

    Returns:
      `seconds`, `images_per_second` and `ratio`, by side; the last two with the
      `median` and the `best` of the rounds.
    """
    kinds = {"median": statistics.median, "best": min}
    times = {
        side: {kind: fn(values) for kind, fn in kinds.items()}
        for side, values in seconds.items()
    }
    return {
        "seconds": seconds,
        "images_per_second": {
            side: {kind: images / t for kind, t in found.items()}
            for side, found in times.items()
        },
        "ratio": {
            side: {kind: t / times[ours][kind] for kind, t in found.items()}
            for side, found in times.items()
            if side != ours
        },
    }


def say(text: str) -> None:
    """Reports progress."""
    print(text, file=sys.stderr, flush=True)
