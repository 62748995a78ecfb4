"""Random numbers that follow from a key alone, in any version of numpy."""

import numpy as np


class RandomStream:
    """Uniform numbers from a stream that numpy promises never to change.

    Args:
      key: One or two integers, 0 or more.
      counter: Up to four integers, 0 or more; two streams of a key that differ in the
        second or a later one have no number in common.
    """

    def __init__(self, key: tuple[int, ...], counter: tuple[int, ...] = (0,)):
        counter = [*counter, 0, 0, 0][:4]
        self._bits = np.random.Philox(key=[*key, 0][:2], counter=counter)

    def uniform(
        self, least: float = 0, most: float = 1, shape: tuple[int, ...] = ()
    ) -> np.ndarray:
        """Returns float64 of a shape, from least to most without most."""
        raw = self._bits.random_raw(int(np.prod(shape)))
        numbers = (raw >> np.uint64(11)) * 2.0**-53
        return least + (most - least) * np.reshape(numbers, shape)

    def integer(self, least: int, most: int) -> int:
        """Returns an integer from least to most, both included."""
        return int(self.uniform(least, most + 1) // 1)

    def permutation(self, count: int) -> np.ndarray:
        """Returns int [count]: 0 .. count - 1 in a random order."""
        return np.argsort(self.uniform(shape=(count,)), kind="stable")
