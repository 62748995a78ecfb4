"""The former place of `train.fit`."""

from train.fit import NonFiniteLossError, Result, fit, resume_run

__all__ = ["NonFiniteLossError", "Result", "fit", "resume_run"]
