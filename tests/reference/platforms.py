"""What accelerators would run, run on this machine's CPU."""

from collections.abc import Callable
from typing import Any

import jax


def run_as_on(platform: str, function: Callable, *arguments: Any) -> Any:
    """Calls the program that a function has on another platform.

    Args:
      platform: Whose branches of `jax.lax.platform_dependent` are taken, such as "tpu".
      function: A function of arrays, which needs no kernels of that platform.
      *arguments: Its arrays.

    Returns:
      What the function returns.
    """
    exported = jax.export.export(
        jax.jit(function),
        platforms=[platform],
        disabled_checks=[jax.export.DisabledSafetyCheck.platform()],
    )(*arguments)
    return exported.call(*arguments)
