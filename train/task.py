"""The interface of a task: its loss, its metrics, and the texts to print.

Each task is a class in `train/tasks/` and an entry of `train.tasks.TASKS`.
"""

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
from flax import linen as nn
from PIL import Image

import zoo
from train.config import DataConfig, OptimConfig
from train.data import Source
from zoo import protocols
from zoo.spec import Card, ModelSpec, Preprocess

Array = jax.Array
Batch = dict[str, Array]
Scalars = dict[str, Array]


class Evaluated(Protocol):
    """The result of an evaluation; each task adds more to the metrics.

    Attributes:
      metrics: Numbers by name, including the task's primary metric.
    """

    metrics: dict[str, float]


class Predicted(NamedTuple):
    """The prediction for an image, or for a pair of images.

    Attributes:
      title: The names of the files.
      stem: The beginning of the pictures' file names.
      words: The prediction, in a few words.
      pictures: The pictures to be saved, by the endings of their file names.
    """

    title: str
    stem: str
    words: str
    pictures: dict[str, Image.Image]


class Task(abc.ABC):
    """A loss to train a network on, and the metrics to evaluate it by.

    Attributes:
      name: The name of the task, as in `ModelSpec.task`.
      primary_metric: The metric by which checkpoints are compared; larger is better.
      has_targets_in_place: Whether examples have boxes or masks, which must move with
        the pixels of their image.
      eval_batch_size: The default number of images in a step of `evaluate`.
      evaluate_options: Which of the options `--scales`, `--align`, `--landmark-noise`,
        `--mirror` and `--ensemble` of training and of `evaluate` the task supports.
      predict_arguments: Example arguments of `predict`.
      report: Makes the task's part of a run's report, a `train.report.Evaluation`, from
        a `train.run.Result`.
    """

    name: ClassVar[str]
    primary_metric: ClassVar[str]
    has_targets_in_place: ClassVar[bool] = True
    eval_batch_size: ClassVar[int] = 8
    evaluate_options: ClassVar[frozenset[str]] = frozenset()
    predict_arguments: ClassVar[str] = "IMAGE.png"
    report: ClassVar[Callable[[Any], Any]]

    @classmethod
    @abc.abstractmethod
    def create(
        cls,
        spec: ModelSpec,
        optim: OptimConfig,
        data: DataConfig,
        sources: Sequence[Source] = (),
    ) -> "Task":
        """Creates the task of a network.

        Args:
          spec: The specification of the network.
          optim: The losses, if they differ from the network's own.
          data: The data config.
          sources: The examples, those to evaluate on last; empty to trace the task
            without any.

        Raises:
          ValueError: A loss is unknown, or an option does not fit the task.
        """

    @classmethod
    def prepare_sources(
        cls,
        data: DataConfig,
        sources: Sequence[Source],
        preprocesses: Sequence[Preprocess],
    ) -> tuple[DataConfig, Sequence[Source]]:
        """Prepares examples for a network, before they are fitted to its input.

        Args:
          data: The data config.
          sources: The examples.
          preprocesses: The network's input for each of the sources.

        Returns:
          The config, with settings that depend on the examples, and the prepared
          examples.
        """
        return data, sources

    @classmethod
    def tiny_data(cls, preprocess: Preprocess) -> dict[str, Any]:
        """Returns the fields of `DataConfig` for a tiny experiment."""
        return {
            "dataset": "digits_canvas",
            "train_split": "train[:8]",
            "eval_split": "test[:4]",
            "classes": (),
            "ignored": (),
            "batch_size": 2,
            "eval_batch_size": 2,
        }

    @abc.abstractmethod
    def objective(
        self,
        model: nn.Module,
        variables: dict[str, Any],
        images: Array,
        batch: Batch,
        rngs: dict[str, Array],
        counts: Scalars | None = None,
    ) -> tuple[Array, Scalars, dict[str, Any]]:
        """Computes the loss that training minimizes.

        Args:
          model: The network.
          variables: The model's variables.
          images: Preprocessed images, float32 [B, H, W, C].
          batch: The labels, boxes or masks of the images; see `train.data`.
          rngs: The random keys "dropout" and "sample".
          counts: The denominators of the losses; None for this batch's own `counts`.

        Returns:
          The loss, other metrics of the step, and the new batch statistics.
        """

    def counts(
        self,
        model: nn.Module,
        variables: dict[str, Any],
        images: Array,
        batch: Batch,
        rngs: dict[str, Array],
    ) -> Scalars:
        """Counts what the losses of a batch are divided by, such as matched anchors.

        If each part's losses are divided by the mean of all parts' counts, the mean
        gradient of the parts is that of the whole batch. Under `jit` only what the
        counts depend on is computed; for SSD this excludes the network.

        Args:
          model: The network.
          variables: The model's variables.
          images: Preprocessed images, float32 [B, H, W, C].
          batch: The labels, boxes or masks of the images.
          rngs: The random keys, as in `objective`.

        Returns:
          Scalars float32 [] by name; empty if the losses are means over images.
        """
        return {}

    @abc.abstractmethod
    def empty(self, num_classes: int) -> Any:
        """Returns the metric's state before any image."""

    @abc.abstractmethod
    def evaluate(
        self,
        model: nn.Module,
        variables: dict[str, Any],
        images: Array,
        state: Any,
        batch: Batch,
    ) -> tuple[Any, dict[str, Array]]:
        """Evaluates a batch, some of whose images may be padding (not `valid`).

        Returns:
          The metric's new state, and results to keep for each image: arrays [B, ...]
          by name.
        """

    @abc.abstractmethod
    def collect(
        self, state: Any, each: dict[str, Any], class_names: tuple[str, ...]
    ) -> Evaluated:
        """Computes the metrics of an evaluation.

        Args:
          state: The metric's state after all images.
          each: The kept results by name: numpy arrays [N, ...] in the set's order.
          class_names: The names of the classes.
        """

    @abc.abstractmethod
    def format_metrics(self, metrics: Mapping[str, float]) -> str:
        """Formats the metrics in a few words."""

    @classmethod
    def choose_protocol(
        cls, name: str, scales: tuple[int, ...], model: str
    ) -> protocols.Protocol | None:
        """Chooses the views of each image that `evaluate` averages.

        Args:
          name: The value of `--protocol`.
          scales: The values of `--scales`.
          model: The name of the network, for messages.

        Returns:
          The protocol, or None for one view of each image as in training.

        Raises:
          ValueError: The task has no such protocol.
        """
        if name != "center_crop":
            raise ValueError(
                f"--protocol {name} is not for {model}, whose task is {cls.name}; "
                "expected center_crop."
            )
        return None

    @classmethod
    def check_source(
        cls, source: Source, card: Card, protocol: str, where: str, weights: str
    ) -> None:
        """Checks that a network can be evaluated on a source.

        Args:
          source: The examples.
          card: The card of the network's variables.
          protocol: The value of `--protocol`.
          where: The data set and its split, for messages.
          weights: The name of the weights, for messages.

        Raises:
          ValueError: The classes are not those of the weights.
        """
        names, known = source.class_names, card.class_names
        if len(names) != card.num_classes:
            raise ValueError(
                f"{where} has {len(names)} classes, and {weights} was trained on "
                f"{card.num_classes}."
            )
        if not known or names == known:
            return
        for number, name in enumerate(names):
            if name in known and known[number] != name:
                raise ValueError(
                    f"{where} has the classes in another order: {name!r} is number "
                    f"{number}, and in {weights} number {known.index(name)}."
                )
        print(
            f"Classes are matched by number: class 0 is {names[0]!r} in the data set\n"
            f"and {known[0]!r} in {weights}, the last {names[-1]!r} and {known[-1]!r}."
        )

    def prepare_protocol(
        self,
        protocol: str,
        variables: Any,
        card: Card,
        others: Sequence[Evaluated] = (),
    ) -> "Task":
        """Returns the task, with what a protocol needs from the networks.

        Args:
          protocol: The value of `--protocol`.
          variables: The model's variables.
          card: The card of the variables.
          others: The results of the runs of `--ensemble` on the same examples.

        Raises:
          ValueError: The examples do not allow the protocol.
        """
        return self

    def summarize(self, evaluated: Evaluated, protocol: str) -> Iterator[str]:
        """Yields the lines that `evaluate` prints.

        Args:
          evaluated: The result of the evaluation.
          protocol: The value of `--protocol`.
        """
        return format_rows(evaluated.metrics)

    @classmethod
    def predict(
        cls, run_dir: Path, paths: Sequence[Path], *, score_threshold: float | None
    ) -> Iterator[Predicted]:
        """Yields the predictions of a run's network for image files.

        Args:
          run_dir: The folder of the run.
          paths: The image files.
          score_threshold: The lowest score of a detection, 0 to 1; None for the
            network's own.

        Raises:
          ValueError: There is no run, or a file cannot be read as an image.
        """
        predictor = zoo.make_predictor(run_dir, score_threshold=score_threshold)
        for path in paths:
            found = predictor(path)
            yield Predicted(str(path), path.stem, found.words(), found.pictures())


def format_rows(metrics: Mapping[str, float]) -> Iterator[str]:
    """Yields a line for each metric."""
    for name, value in metrics.items():
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
        yield f"  {name.replace('_', ' '):<22}  {shown}"


def apply_and_compare(
    model: nn.Module,
    variables: dict[str, Any],
    images: Array,
    rngs: dict[str, Array],
    compare: Callable[[Array], Array],
    aux_losses: Sequence[tuple[str, float]],
    compare_aux: Callable[[Array], Array] | None = None,
) -> tuple[Array, Array, dict[str, Any]]:
    """Applies a network in training mode, and computes its main and auxiliary losses.

    Args:
      model: The network.
      variables: The model's variables.
      images: float32 [B, H, W, C], preprocessed.
      rngs: The random keys, as in `Task.objective`.
      compare: A function from logits to losses [B].
      aux_losses: The endpoints with auxiliary logits, and the factor of each one's
        loss; endpoints that the network does not have are skipped.
      compare_aux: The function for the auxiliary logits; None for `compare`.

    Returns:
      The logits, the sum of the losses [B], and the new batch statistics.
    """
    out, updated = model.apply(
        variables,
        images,
        train=True,
        mutable=["batch_stats"],
        rngs=rngs,
        method="endpoints" if aux_losses else "__call__",
    )
    logits = out["logits"] if aux_losses else out
    losses = compare(logits)
    for name, factor in aux_losses:
        if name in out:
            losses += factor * (compare_aux or compare)(out[name])
    return logits, losses, updated.get("batch_stats", {})
