"""Random numbers that depend only on a key, not on the version of numpy."""

import numpy as np


class RandomStream:
    """A stream of uniform random numbers.

    It is numpy's Philox generator, whose raw stream is the same in all versions.

    Args:
      key: One or two integers, 0 or more.
      counter: Up to four integers, 0 or more. Two streams with the same key are
        independent if their counters differ in the second or a later number.
    """

    def __init__(self, key: tuple[int, ...], counter: tuple[int, ...] = (0,)):
        counter = [*counter, 0, 0, 0][:4]
        self._bits = np.random.Philox(key=[*key, 0][:2], counter=counter)

    def uniform(
        self, least: float = 0, most: float = 1, shape: tuple[int, ...] = ()
    ) -> np.ndarray:
        """Draws float64 numbers, uniform in [least, most)."""
        raw = self._bits.random_raw(int(np.prod(shape)))
        numbers = (raw >> np.uint64(11)) * 2.0**-53
        return least + (most - least) * np.reshape(numbers, shape)

    def integer(self, least: int, most: int) -> int:
        """Draws an integer, uniform in [least, most]."""
        return int(self.uniform(least, most + 1) // 1)

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """Draws float64 numbers with mean 0 and standard deviation 1.

        They are sums of four uniform numbers: nearly normal, within 3.5, and the same
        on every machine.
        """
        return self.uniform(-0.5, 0.5, (4, *shape)).sum(0) * np.sqrt(3)

    def permutation(self, count: int) -> np.ndarray:
        """Draws a permutation of 0 .. count - 1: int [count]."""
        return np.argsort(self.uniform(shape=(count,)), kind="stable")
