"""How many images does a new class need? Transfer from digits 0-4 to digits 5-9.

    canon-zoo train digits_transfer

A network that knows the digits 0 to 4 learns 5 to 9 from a few images of each: with
its features frozen and a new head, fine-tuned as a whole, and, to compare, from
scratch. Every point is the mean over several choices of images.
"""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from train.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from train.fit import Result, fit
from train.report import Section, plot_section, table_section
from train.run_report import write_run_report

PER_CLASS = (1, 5, 10, 50)
METHODS = ("frozen features", "fine-tuned", "from scratch")


def base_config(epochs: int = 20) -> TrainConfig:
    """The network that knows the digits 0 to 4."""
    return TrainConfig(
        model=ModelConfig("lenet5_modern"),
        data=DataConfig(
            "digits",
            classes=("0", "1", "2", "3", "4"),
            batch_size=32,
            augment=("affine",),
        ),
        optim=OptimConfig(learning_rate=0.01, weight_decay=5e-4, schedule="cosine"),
        epochs=epochs,
        eval_every=epochs,
        save_every=epochs,
    )


def transfer_config(
    method: str, per_class: int, seed: int, weights: Path, steps: int = 40
) -> TrainConfig:
    """Learns the digits 5 to 9 from `per_class` images of each.

    Args:
      method: One of `METHODS`.
      per_class: Images of each class.
      seed: The seed of the choice of images and of the initialization.
      weights: Run folder of the base network.
      steps: Length of the training, the same for all.
    """
    base = base_config()
    frozen = ("backbone/**",) if method == "frozen features" else ()
    start = None if method == "from scratch" else str(weights)
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, weights=start),
        data=dataclasses.replace(
            base.data,
            classes=("5", "6", "7", "8", "9"),
            per_class=per_class,
            batch_size=min(32, 5 * per_class),
        ),
        optim=dataclasses.replace(base.optim, freeze=frozen),
        steps=steps,
        seed=seed,
        # One evaluation and one checkpoint, at the end.
        eval_every=steps,
        save_every=steps,
    )


def digits_transfer(
    run_dir: Path,
    *,
    seeds: int = 3,
    steps: int = 40,
    epochs: int = 20,
    per_class: tuple[int, ...] = PER_CLASS,
) -> tuple[Result, dict[str, np.ndarray]]:
    """Runs the study and writes its report.

    Args:
      run_dir: New folder, for the base network's run and the others below it.
      seeds: Choices of images for each point.
      steps: Length of each transfer.
      epochs: Length of the base network's training.
      per_class: Numbers of images of each class.

    Returns:
      The base network's result, and for each method the accuracies [points, seeds].

    Raises:
      ValueError: A signal ended one of the runs.
    """
    base = fit(base_config(epochs), run_dir)
    _ = base.metrics  # Nothing is transferred from half a training.
    accuracy = {m: np.zeros((len(per_class), seeds)) for m in METHODS}
    points = [*itertools.product(METHODS, range(len(per_class)), range(seeds))]
    for method, i, seed in tqdm(points, desc="transfers", unit="run"):
        config = transfer_config(method, per_class[i], seed, run_dir, steps)
        name = f"{method}-{per_class[i]}-{seed}".replace(" ", "-")
        result = fit(config, run_dir / "transfers" / name, quiet=True)
        accuracy[method][i, seed] = result.metrics["accuracy"]
    write_run_report(base, sections(accuracy, per_class))
    return base, accuracy


def sections(
    accuracy: dict[str, np.ndarray], per_class: tuple[int, ...]
) -> list[Section]:
    """Makes the table and the plot of the report."""
    seeds = next(iter(accuracy.values())).shape[1]
    note = (
        f"Accuracy on the held-out images of the digits 5 to 9: mean and standard "
        f"deviation over {seeds} choices of training images."
    )
    rows = [
        (str(n), *(f"{a[i].mean():.1%} ± {a[i].std():.1%}" for a in accuracy.values()))
        for i, n in enumerate(per_class)
    ]
    curves = {m: (list(per_class), [*a.mean(axis=1)]) for m, a in accuracy.items()}
    return [
        table_section("Transfer to 5-9", ("images a class", *accuracy), rows, note),
        plot_section(
            "Accuracy by number of images",
            curves,
            "training images of each class",
            "accuracy",
            note,
            log_x=True,
        ),
    ]
