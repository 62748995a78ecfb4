"""The entry points of `canon-zoo` and `python -m train`.

The commands themselves are in `zoo.__main__` and `train.cli`.
"""

import sys


def canon_zoo() -> None:
    """Runs the program `canon-zoo`: a command of zoo, or `train` and its command."""
    if sys.argv[1:2] == ["train"]:
        train(sys.argv[2:])
    else:
        from zoo.__main__ import run

        run(sys.argv[1:])


def train(arguments: list[str]) -> None:
    """Runs a command of the trainer, or names the package to install for it."""
    try:
        from train.cli import run
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("train", "zoo"):
            raise
        sys.exit(
            f"error: training needs {package}, which is not installed; this installs "
            "all that it needs:\n  pip install 'canon-zoo[train]'"
        )
    run(arguments)


if __name__ == "__main__":
    train(sys.argv[1:])
