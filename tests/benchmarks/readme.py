"""Writes the models' table of zoo/README.md; replaces blocks of the README.md here.

python tests/benchmarks/readme.py
"""

import argparse
import re
from pathlib import Path

import zoo

README = Path(__file__).parent / "README.md"
MODELS = Path(__file__).parents[2] / "zoo" / "README.md"


def model_tables() -> str:
    """Makes a table of the models of each task."""
    tasks = ("classification", "detection", "segmentation", "verification")
    return "\n\n".join(f"**{task.title()}**\n\n{model_table(task)}" for task in tasks)


def model_table(task: str) -> str:
    """Makes the table of a task's models."""
    rows = ["| model | paper | parameters | MACs | input | weights |"]
    rows += ["| --- | --- | ---: | ---: | --- | --- |"]
    for name in zoo.list_models(task=task):
        spec = zoo.get_spec(name)
        pixels = "x".join(map(str, spec.preprocess.shape))
        authors, year = spec.paper.split(":")[0], re.findall(r"\d{4}", spec.paper)[-1]
        paper = "the zoo's own" if authors == "none" else f"{authors}, {year}"
        weights = "; ".join(
            f"`{w.name}`: {w.accuracy.partition(' of ')[0]}"
            for w in (*spec.weights, *zoo.weights.list_trained(name))
        )
        rows.append(
            f"| `{name}` | {paper} | {spec.params:,} | {spec.macs:,} | "
            f"{pixels} | {weights or '-'} |"
        )
    return "\n".join(rows)


def replace_block(text: str, name: str, block: str) -> str:
    """Replaces the text between the marks of a block.

    Raises:
      ValueError: The marks are missing.
    """
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    if not re.search(pattern, text, re.S):
        raise ValueError(f"README.md has no block {name!r}.")
    return re.sub(pattern, lambda m: f"{m[1]}{block}\n{m[2]}", text, flags=re.S)


def write_block(name: str, block: str) -> None:
    """Writes a block to README.md.

    Raises:
      ValueError: The marks are missing.
    """
    README.write_text(replace_block(README.read_text(), name, block))


def write_models() -> None:
    """Writes the table of models to zoo/README.md."""
    MODELS.write_text(replace_block(MODELS.read_text(), "models", model_tables()))


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    write_models()
