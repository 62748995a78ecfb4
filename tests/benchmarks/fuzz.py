"""Reads damaged files of every kind: each must be read, or refused by its name.

    python tests/benchmarks/fuzz.py [--cases 10000] [--seconds 10] [--seed 0]
        [--kinds image zip ..]

Small files of each kind are damaged: bits are flipped, parts are cut out, repeated or
replaced, and values of JSON, XML and PyTorch files become infinite, huge, deep, or of
another type. What reads them may raise a ValueError, an OSError or an ImportError that
names the file; anything else is a fault, as is a case that takes longer than `LIMIT`
seconds. The cases follow from the seed alone. Prints one line of JSON, and each fault
with the seed of its case before it; the status is 1 where there are faults.
"""

import argparse
import faulthandler
import json
import logging
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import fuzz_data
import fuzz_runs
import numpy as np
from fuzz_damage import Kind

LIMIT = 30.0  # seconds for a case
MEMORY = 4 * 2**30  # bytes that a case may take beside what the process has
KINDS = {**fuzz_data.KINDS, **fuzz_runs.KINDS}


class Slow(BaseException):
    """A case takes too long."""


def run_case(kind: str, seed: int, number: int, root: Path) -> str | None:
    """Writes and reads one damaged file.

    Returns:
      What is wrong with how it was read, or None.
    """
    folder = root / f"{kind}-{number}"
    folder.mkdir()
    order = [*KINDS].index(kind)
    rng = np.random.default_rng([seed, order, number])
    try:
        KINDS[kind].write(rng, folder)
        return _judge(KINDS[kind], folder)
    finally:
        shutil.rmtree(folder)


def _judge(kind: Kind, folder: Path) -> str | None:
    def stop(signum, frame):
        raise Slow

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    faulthandler.dump_traceback_later(6 * LIMIT, exit=True)  # code that is no Python
    try:
        kind.read(folder)
    except Slow:
        return f"took longer than {LIMIT} seconds"
    except (ValueError, OSError, ImportError) as error:
        if str(folder) in str(error):
            return None
        return f"does not name the file: {_describe(error)}"
    except Exception as error:
        return _describe(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()
    return None


def _describe(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/zoo/" in f.filename or "/train/" in f.filename]
    place = f"{own[-1].filename}:{own[-1].lineno}" if own else "?"
    return f"{type(error).__name__} at {place}: {str(error)[:200]}"


def run_cases(
    kinds: list[str], *, seed: int, cases: int, seconds: float
) -> tuple[dict[str, int], list[str]]:
    """Runs cases of some kinds, one of each after the other.

    Args:
      kinds: Names of `KINDS`.
      seed: Seed from which all cases are drawn.
      cases: Largest number of cases, of all kinds together; 0 for no limit.
      seconds: Time after which no case begins; 0 for no limit.

    Returns:
      The number of cases of each kind, and the faults.
    """
    if {"safetensors", "pth"} & {*kinds}:
        fuzz_runs.fresh_variables()  # which compiles, once
    done, faults, started = dict.fromkeys(kinds, 0), [], time.monotonic()
    logging.disable(logging.WARNING)  # such as those of boxes without area
    try:
        with (
            tempfile.TemporaryDirectory(prefix="fuzz") as root,
            warnings.catch_warnings(action="ignore"),
        ):
            while not cases or sum(done.values()) < cases:
                kind = min(kinds, key=done.get)
                if seconds and time.monotonic() - started >= seconds:
                    break
                fault = run_case(kind, seed, done[kind], Path(root))
                if fault:
                    faults.append(f"{kind}, seed {seed}, case {done[kind]}: {fault}")
                done[kind] += 1
    finally:
        logging.disable(logging.NOTSET)
    return done, faults


def limit_memory() -> None:
    """Lets the process take `MEMORY` more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=0, help="number of cases")
    parser.add_argument("--seconds", type=float, default=0, help="time limit")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--kinds", nargs="*", default=[*KINDS], choices=[*KINDS])
    options = parser.parse_args()
    if not options.cases and not options.seconds:
        options.seconds = 10
    fuzz_runs.fresh_variables()
    limit_memory()
    started = time.monotonic()
    done, faults = run_cases(
        options.kinds,
        seed=options.seed,
        cases=options.cases,
        seconds=options.seconds,
    )
    print("\n".join(faults), end="\n" if faults else "")
    result = {
        "cases": sum(done.values()),
        "faults": len(faults),
        "seconds": round(time.monotonic() - started, 1),
        "seed": options.seed,
        "by_kind": done,
    }
    print(json.dumps(result))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
