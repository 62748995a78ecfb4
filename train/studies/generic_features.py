"""Features off the shelf, with a linear classifier, for other classes and retrieval.

python -m train study generic_features
"""

import dataclasses

import numpy as np

import zoo
from train.studies.drawing import COLORS, new_figure
from train.studies.features import (
    LENET,
    RESNET20,
    UNTRAINED_LENET,
    Base,
    compute_features,
    load_base,
    score_svm,
)
from train.studies.study import Band, Job, Outcome, Study, Table

# Razavian et al., tables 1 to 6: CNN-SVM and CNNaug-SVM, in percent.
PUBLISHED = (
    ("VOC 2007 classification, mAP", 73.9, 77.2),
    ("MIT-67 scenes, accuracy", 58.4, 69.0),
    ("CUB-200-2011 birds, accuracy", 53.3, 61.8),
    ("Oxford 102 flowers, accuracy", 74.7, 86.8),
)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The size of the study.

    Attributes:
      base: The network and the images.
      endpoint: Endpoint whose features are used.
    """

    base: Base
    endpoint: str


def run(job: Job) -> Outcome:
    """Classifies and retrieves by trained features, untrained features, and pixels."""
    sizes = job.sizes
    model, variables, arrays = load_base(sizes.base, job.dataset)
    _, initial = zoo.create(sizes.base.model, num_classes=model.head.num_classes)
    images = np.concatenate([arrays.images, arrays.test_images])
    vectors = {"pixels": images.reshape(len(images), -1)}
    for name, weights in (("initial weights", initial), ("trained", variables)):
        found = compute_features(model, weights, images, [sizes.endpoint], grid=1)
        vectors[name] = found[sizes.endpoint]
    found = {}
    for name, both in vectors.items():
        train, test = np.split(both, [len(arrays.images)])
        found[name] = {
            "classification": score_svm(train, arrays.labels, test, arrays.test_labels),
            "retrieval": mean_average_precision(
                test, arrays.test_labels, train, arrays.labels
            ),
        }
    chance = 1 / len(np.unique(arrays.labels))
    remarks = []
    if not sizes.base.weights:
        remarks.append(
            "Five classes of digits are as well told apart by their pixels; the medium "
            "scale puts the claim to the test, from CIFAR-10 to CIFAR-100."
        )
    gain = {
        task: found["trained"][task] - found["pixels"][task]
        for task in ("classification", "retrieval")
    }
    low = 0.0 if sizes.base.weights else -0.1
    return Outcome(
        figures=[
            (
                "Classification by linear SVMs and retrieval by cosine similarity, on "
                "classes that the network was not trained for.",
                draw(found, chance),
            )
        ],
        tables=[
            Table(
                "Classes that the network was not trained for",
                ("features", "dimensions", "classification", "retrieval, mAP"),
                [
                    (
                        name,
                        vectors[name].shape[1],
                        f"{each['classification']:.1%}",
                        f"{each['retrieval']:.1%}",
                    )
                    for name, each in found.items()
                ],
                f"Chance is {chance:.1%}. Each test image is a query, and the training "
                "images are ranked.",
            ),
            Table(
                "Published: features of OverFeat with a linear SVM",
                ("set", "CNN-SVM %", "CNNaug-SVM %"),
                PUBLISHED,
            ),
        ],
        bands=[
            Band(
                "classification: features minus pixels, accuracy",
                gain["classification"],
                low=low,
                reason="features off the shelf serve classes they were not made for",
                published="OverFeat beats methods of each task's own (tables 1 to 6)",
            ),
            Band(
                "retrieval: features minus pixels, mAP",
                gain["retrieval"],
                low=low,
                reason="near in features is alike in content",
            ),
        ],
        seeds=(0,),
        remarks=remarks,
        values={"measured": found, "chance": chance},
    )


def mean_average_precision(
    queries: np.ndarray, labels: np.ndarray, base: np.ndarray, base_labels: np.ndarray
) -> float:
    """Ranks a base by cosine similarity to each query.

    Args:
      queries: float32 [Q, F], features of the queries.
      labels: int [Q], classes of the queries.
      base: float32 [N, F], features of the base.
      base_labels: int [N], classes of the base; the query's class is relevant.

    Returns:
      Mean over the queries of the average precision.
    """
    from sklearn.metrics import label_ranking_average_precision_score
    from sklearn.metrics.pairwise import cosine_similarity

    center = base.mean(0)
    similarity = cosine_similarity(queries - center, base - center)
    relevant = labels[:, None] == base_labels
    return float(label_ranking_average_precision_score(relevant, similarity))


def draw(found, chance: float):
    """Draws bars for both tasks."""
    figure, (axes,) = new_figure(2, height=3.2)
    for axis, task in zip(axes, ("classification", "retrieval"), strict=True):
        values = [100 * each[task] for each in found.values()]
        bars = axis.bar([*found], values, color=COLORS[: len(found)])
        axis.bar_label(bars, fmt="%.1f")
        axis.axhline(100 * chance, color="black", lw=0.8, ls=":")
        axis.set(title=task, ylabel="accuracy (%)" if task[0] == "c" else "mAP (%)")
    return figure


STUDY = Study(
    name="generic_features",
    claim=(
        "Features off the shelf with a linear classifier serve other classes and other "
        "tasks."
    ),
    reference=(
        "Razavian et al., CNN Features off-the-shelf: an Astounding Baseline for "
        "Recognition, 2014."
    ),
    run=run,
    scales={
        "smoke": Sizes(UNTRAINED_LENET, "ip1"),
        "quick": Sizes(LENET, "ip1"),
        "medium": Sizes(RESNET20, "pool"),
        "full": Sizes(Base("vgg16", "imagenet", None), "fc6"),
    },
    changes={
        "quick": "A LeNet that knows the digits 0 to 4; the other digits.",
        "medium": "The package's ResNet-20 of CIFAR-10; the classes of "
        "CIFAR-100, 50 images of each; no augmentation.",
        "full": "VGG-16 in place of OverFeat; a folder with the splits train and test, "
        "named by --dataset; no augmentation.",
    },
    data_scales=("medium", "full"),
)
