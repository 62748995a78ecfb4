"""Reading with several threads."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
# Threads that read and decode; Pillow and zlib release Python's lock.
THREADS = 8
_WORTH_A_BAR = 5000


def map_in_threads(function: Callable[[int], T], count: int, what: str) -> Iterator[T]:
    """Yields `function(0)`, `function(1)`, ..; stops at the first exception.

    Args:
      function: Reads what is at a position.
      count: Number of positions.
      what: What a bar is to say, where there are so many that one is shown.
    """
    quiet = count < _WORTH_A_BAR
    with (
        ThreadPoolExecutor(THREADS) as threads,
        tqdm(desc=what, total=count, unit=" images", disable=quiet) as bar,
    ):
        # Block by block, for every call that waits its turn takes memory.
        for first in range(0, count, 64 * THREADS):
            block = range(first, min(first + 64 * THREADS, count))
            for result in threads.map(function, block):
                yield result
                bar.update()
