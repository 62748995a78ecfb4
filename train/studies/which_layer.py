"""Higher layers transfer better.

python -m train study which_layer
"""

import dataclasses

import numpy as np

import zoo
from train.studies.drawing import COLORS, format_spread, new_figure
from train.studies.features import (
    LENET,
    RESNET20,
    UNTRAINED_LENET,
    Base,
    choose,
    compute_features,
    load_base,
    score_svm,
)
from train.studies.study import Band, Job, Outcome, Study, Table

# Accuracy in percent of a linear SVM on layers 1 to 7, on Caltech-101 with 30 images of
# a class and on Caltech-256 with 60 (table 7).
PUBLISHED = {
    1: (44.8, 24.6),
    2: (66.2, 39.6),
    3: (72.3, 46.0),
    4: (76.6, 51.3),
    5: (86.2, 65.6),
    7: (85.5, 71.7),
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The size of the study.

    Attributes:
      base: The network and the images of new classes.
      endpoints: Endpoints of the layers, the lowest first.
      per_class: Number of training images of each class.
      seeds: Seeds of the choices of images.
    """

    base: Base
    endpoints: tuple[str, ...]
    per_class: int
    seeds: tuple[int, ...]


def run(job: Job) -> Outcome:
    """Trains linear SVMs on each layer's features, and on those of initial weights."""
    sizes = job.sizes
    _, variables, arrays = load_base(sizes.base, job.dataset)
    _, initial = zoo.create(sizes.base.model)
    chosen = [choose(arrays.labels, sizes.per_class, seed) for seed in sizes.seeds]
    names = {"pixels": None, **dict.fromkeys(sizes.endpoints)}
    accuracy = {"trained": {}, "initial": {}}
    for kind, weights in (("trained", variables), ("initial", initial)):
        weights = {**weights, "params": {"backbone": weights["params"]["backbone"]}}
        net = zoo.build(sizes.base.model, num_classes=0)
        train, test = (
            compute_features(net, weights, images, sizes.endpoints)
            | {"pixels": images.reshape(len(images), -1)}
            for images in (arrays.images, arrays.test_images)
        )
        for name in names:
            accuracy[kind][name] = [
                score_svm(
                    train[name][few], arrays.labels[few], test[name], arrays.test_labels
                )
                for few in chosen
            ]
    means = {k: {n: np.mean(v) for n, v in a.items()} for k, a in accuracy.items()}
    trained = [float(means["trained"][name]) for name in sizes.endpoints]
    best = sizes.endpoints[int(np.argmax(trained))]
    remarks = []
    if not sizes.base.weights:
        remarks.append(
            "A linear SVM on their pixels tells digits apart, so that no layer can be "
            "much better: the claim cannot show at this size. The medium scale puts it "
            "to the test, from CIFAR-10 to CIFAR-100."
        )
    elif best != sizes.endpoints[-1]:
        remarks.append(
            f"The layers above {best} are worse again: they are made for the classes "
            "that the network was trained on."
        )
    return Outcome(
        figures=[
            (
                "Accuracy of a linear SVM on each layer's features, averaged over a "
                "grid of 4 x 4: of the trained network and of its initial weights. "
                "Right: table 7 of the paper.",
                draw(accuracy),
            )
        ],
        tables=[table(accuracy)],
        bands=[
            Band(
                f"best layer ({best}) minus the lowest, accuracy",
                max(trained) - trained[0],
                low=0.02 if sizes.base.weights else -0.02,
                reason="higher layers are invariant to more and tell classes apart",
                published="0.862 - 0.448 and 0.717 - 0.246",
            ),
            Band(
                f"{best}: trained minus initial weights, accuracy",
                float(means["trained"][best] - means["initial"][best]),
                low=0.0,
                reason="it is what was learned, and not the architecture alone",
            ),
        ],
        seeds=sizes.seeds,
        remarks=remarks,
        values={"accuracy": accuracy},
    )


def draw(accuracy):
    """Draws the measured and the paper's accuracies by layer."""
    figure, (axes,) = new_figure(2, height=3.8)
    for (kind, found), color in zip(accuracy.items(), COLORS, strict=False):
        means = [100 * np.mean(values) for values in found.values()]
        spread = [100 * np.std(values) for values in found.values()]
        axes[0].errorbar([*found], means, spread, marker="o", label=kind, color=color)
    axes[0].set(ylabel="accuracy (%)", xlabel="layer", title="here")
    axes[0].legend(frameon=False)
    for i, name in enumerate(("Caltech-101, 30 a class", "Caltech-256, 60 a class")):
        values = [row[i] for row in PUBLISHED.values()]
        axes[1].plot([*PUBLISHED], values, "o-", color=COLORS[i], label=name)
    axes[1].set(xlabel="layer", title="Zeiler and Fergus, table 7")
    axes[1].legend(frameon=False)
    return figure


def table(accuracy) -> Table:
    """Lists accuracies by layer."""
    rows = [
        (name, *(format_spread(accuracy[kind][name]) for kind in accuracy))
        for name in accuracy["trained"]
    ]
    note = "Published: " + "; ".join(
        f"layer {layer} {a} and {b} %" for layer, (a, b) in PUBLISHED.items()
    )
    return Table("Accuracy by layer", ("features", *accuracy), rows, note)


STUDY = Study(
    name="which_layer",
    claim="The features of higher layers transfer better to new classes.",
    reference=(
        "Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, "
        "2014, table 7."
    ),
    run=run,
    scales={
        "smoke": Sizes(UNTRAINED_LENET, ("pool1", "ip1"), 2, (0,)),
        "quick": Sizes(LENET, ("pool1", "pool2", "ip1"), 10, (0, 1, 2, 3, 4)),
        "medium": Sizes(
            RESNET20, ("stem", "stage1", "stage2", "stage3", "pool"), 50, (0,)
        ),
        "full": Sizes(
            Base("alexnet_tv", "imagenet", None),
            ("pool1", "pool2", "conv3", "conv4", "pool5", "fc7"),
            60,
            (0, 1, 2),
        ),
    },
    changes={
        "quick": "A LeNet that knows the digits 0 to 4; the SVMs tell 5 to 9 apart.",
        "medium": "The package's ResNet-20 of CIFAR-10; the SVMs tell the "
        "100 classes of CIFAR-100 apart, from 50 images of each.",
        "full": "torchvision's AlexNet, as there are no weights of zfnet; Caltech-256 "
        "in a folder with the splits train and test.",
    },
    data_scales=("medium", "full"),
)
