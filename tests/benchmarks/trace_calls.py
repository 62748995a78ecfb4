"""Counts the project's functions that a command of the trainer calls, by file.

    python tests/benchmarks/trace_calls.py cifar10_resnet20_tiny --run-dir /tmp/run

Each function counts once; lambdas, comprehensions and the bodies of modules and classes
do not count. The depth is the largest number of the project's functions on the stack.
"""

import argparse
import json
import sys
import threading
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = tuple(f"{ROOT / room}/" for room in ("train", "zoo"))


class Trace:
    """The functions that were called, of all threads together."""

    def __init__(self):
        self.functions: dict[str, set[str]] = defaultdict(set)
        self.depth = 0
        self._stack = threading.local()

    def __call__(self, frame, event, argument):
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(ROOMS):
            return
        if code.co_name.startswith("<") or not code.co_flags & 0x2:  # CO_NEWLOCALS
            return
        depth = getattr(self._stack, "depth", 0) + (1 if event == "call" else -1)
        self._stack.depth = max(depth, 0)
        self.depth = max(self.depth, depth)
        self.functions[code.co_filename.removeprefix(f"{ROOT}/")].add(
            f"{code.co_qualname}:{code.co_firstlineno}"
        )


def main() -> None:
    """Runs a command of the trainer and prints the functions that it called."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, help="arguments of `python -m train`"
    )
    arguments = parser.parse_args().command
    if not arguments:
        parser.error("name a command, such as cifar10_resnet20_tiny --run-dir DIR.")
    # Computations at import, such as those of the specs, do not count.
    import train.cli
    from train.__main__ import train

    trace = Trace()
    threading.setprofile(trace)
    sys.setprofile(trace)
    try:
        train(arguments)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    files = trace.functions
    for name in sorted(files):
        print(f"{len(files[name]):4}  {name}: {', '.join(sorted(files[name]))}")
    found = {
        "functions": sum(map(len, files.values())),
        "files": len(files),
        "depth": trace.depth,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
