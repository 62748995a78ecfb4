"""What the layers of a trained network do.

python -m train study visualization
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from matplotlib.figure import Figure

import zoo
from train.data import Subset, fit_source, load_dataset, load_resident
from train.data.faces.synthetic import draw_example
from train.data.source import evenly_spaced
from train.figures.maps import draw_projection
from train.studies.drawing import COLORS, new_figure
from train.studies.runner import build_resnet, digits, short_config, train_in_memory
from train.studies.study import Band, Job, Outcome, Study, Table
from zoo import explain
from zoo.cpu import jit_inference
from zoo.face.alignment import (
    align_2d,
    fit_similarity,
    make_template,
    pick_fiducials,
    to_uint8,
    transform,
)

# Hamming distances of the changes of 5 dogs' features, in layers 5 and 7 (table 1 of
# the first version, arXiv 1311.2901).
PUBLISHED = {
    "right eye": (0.067, 0.069),
    "left eye": (0.069, 0.068),
    "nose": (0.079, 0.069),
    "random": (0.107, 0.073),
}
PARTS = ("left eye", "right eye", "nose", "left corner of the mouth")
BOX = 0.2  # side of the box that hides a part, relative to that of a face's crop
CHANNELS = 6  # number of channels whose development in training is shown
SHOWN = 5  # number of images whose invariance curves are drawn


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The size of the study.

    Attributes:
      weights: Published weights of `model`; None to train a `cifar_resnet20` on digits.
      dataset: Data set.
      images: Number of test images.
      transforms: Number of translations, of scalings, and of rotations.
      faces: Number of drawn faces.
      draws: Number of random boxes that are hidden in each face.
      depth: Number of weighted layers of the network that is trained.
      width: Number of channels of that network's first stage.
      steps: Length of the training, in steps.
      model: Registered name of the network, a ResNet.
      ends: Names of the first and of the last of the network's maps.
    """

    weights: str | None
    dataset: str
    images: int
    transforms: int
    faces: int
    draws: int
    depth: int = 0
    width: int = 0
    steps: int = 0
    model: str = "cifar_resnet20"
    ends: tuple[str, str] = ("stem", "stage3")


# Accuracies by kind of the removed part, and by its name.
Ablation = Mapping[str, Mapping[str, float]]


class Trained(NamedTuple):
    """A trained network and its test images.

    Attributes:
      model: The network.
      variables: The variables.
      images: float32 [N, H, W, C], preprocessed test images.
      labels: int32 [N], the classes of the images.
      history: The variables by training step; empty if it was not trained here.
      ends: Names of the first and of the last of the network's maps.
    """

    model: nn.Module
    variables: Mapping[str, Any]
    images: jax.Array
    labels: np.ndarray
    history: Mapping[int, Any]
    ends: tuple[str, str]


def run(job: Job) -> Outcome:
    """Measures the features of a classifier and of a face network."""
    sizes, trained = job.sizes, load(job)
    curves = {
        "translation (pixels)": measure(trained, "translations", sizes.transforms),
        "scale": measure(trained, "scalings", sizes.transforms),
        "rotation (degrees)": measure(trained, "rotations", sizes.transforms),
    }
    ablation = ablate_blocks(trained)
    parts = compare_parts(sizes)
    figures = [
        (
            "Distance of the features of the transformed and of the original image, "
            "divided by the mean distance between images, in the first and in the "
            "last stage; probability of the true class. The mean of all images is "
            "black.",
            draw_invariance(curves),
        ),
        (
            "Accuracy without the branch of one residual block, and without those of "
            "a whole stage.",
            draw_ablation(ablation),
        ),
        (
            "Hamming distance between the signs of the changes of two faces' features "
            "when a part is hidden.",
            draw_parts(parts),
        ),
    ]
    if trained.history:
        figures.insert(0, (CAPTION, draw_history(trained)))
    tables = [ablation_table(ablation), parts_table(parts)]
    remarks = [
        "Nothing is trained anew: the paper trains again without layers, and Veit et "
        "al. take single blocks from networks of 54. A network of 27 blocks, as at the "
        "quick scale, loses little with one; of nine blocks, as at the medium scale, "
        "each matters."
    ]
    return Outcome(
        figures=figures,
        tables=tables,
        bands=[*invariance_bands(curves), *other_bands(ablation, parts)],
        seeds=(0,),
        remarks=remarks,
        values={"ablation": ablation, "parts": parts},
    )


def load(job: Job) -> Trained:
    """Loads the network and its test images, or trains it."""
    sizes, history = job.sizes, {}
    if sizes.weights:
        model, variables, card = zoo.create_with_card(
            sizes.model, weights=sizes.weights
        )
        source = load_dataset(job.dataset or sizes.dataset, "test", color="rgb")
        chosen = Subset(source, evenly_spaced(len(source), sizes.images))
        batch = load_resident(fit_source(chosen, card.preprocess), card.preprocess)
        images, labels = zoo.normalize(batch["image"], card.preprocess), batch["label"]
    else:
        model = build_resnet("cifar_resnet20", sizes.depth, sizes.width)
        arrays = digits(32, channels=3)
        config = short_config(
            "cifar_resnet20",
            batch_size=32,
            steps=sizes.steps,
            seed=0,
            entries=4,
            learning_rate=0.05,
            momentum=0.9,
            weight_decay=1e-4,
            schedule="cosine",
        )

        def watch(step: int, state: Any) -> None:
            history[step] = jax.device_get(state.variables())

        _, variables = train_in_memory(config, arrays, model=model, watch=watch)
        places = evenly_spaced(len(arrays.test_labels), sizes.images)
        images, labels = arrays.test_images[places], arrays.test_labels[places]
    return Trained(model, variables, jnp.asarray(images), labels, history, sizes.ends)


CAPTION = (
    "The strongest activation of channels of the second stage in all test images, "
    "projected by a deconvnet, while the network is trained; a row is a channel."
)


def draw_history(trained: Trained) -> Figure:
    """Draws the projections of channels at several steps: the paper's figure 4."""
    model, steps = trained.model, [*trained.history]
    figure, axes = new_figure(len(steps), CHANNELS, height=1.2)
    for column, (step, variables) in enumerate(trained.history.items()):
        top = explain.top_activations(model, variables, [trained.images], "stage2", 1)
        chosen = np.linspace(0, len(top.values) - 1, CHANNELS).round().astype(int)
        images = trained.images[top.images[chosen, 0]]
        maps = explain.deconvnet(
            model, variables, images, "stage2", chosen, top.positions[chosen, 0]
        )
        for row, values in enumerate(np.asarray(maps)):
            axis = axes[row, column]
            axis.imshow(draw_projection(values), cmap="gray")
            axis.set_axis_off()
            if not row:
                axis.set_title(f"step {step}")
    figure.set_size_inches(1.3 * len(steps), 1.3 * CHANNELS + 0.3)
    return figure


class Curves(NamedTuple):
    """The response of a network to a transform of its images.

    Attributes:
      amounts: float [T], the amounts of the transforms.
      distance: By endpoint, the distance float [T, N] of the features of transformed
        and original image, divided by the mean distance of two images.
      probability: float [T, N], the probability of the true class.
    """

    amounts: np.ndarray
    distance: Mapping[str, np.ndarray]
    probability: np.ndarray


def measure(trained: Trained, kind: str, count: int) -> Curves:
    """Measures the paper's figure 5 for one kind of transform."""
    model, variables, images = trained[:3]
    side = images.shape[1]
    amounts = {
        # By whole pixels: others would blur the image, too.
        "translations": np.unique(np.linspace(-side // 4, side // 4, count).round()),
        "scalings": np.linspace(1, 1.8, count),
        "rotations": np.linspace(0, 360, count),
    }[kind]
    # The mean of the images' top row fills the outside of the images.
    fill = float(images[:, 0].mean())
    found = explain.invariance(
        model,
        variables,
        images,
        trained.labels,
        getattr(explain, kind)(amounts, fill=fill),
        trained.ends,
    )
    features = zoo.features(model, variables, images, trained.ends)
    scales = {
        name: np.linalg.norm(
            (values - jnp.roll(values, 1, axis=0)).reshape(len(values), -1), axis=1
        ).mean()
        for name, values in features.items()
    }
    distance = {name: found[name] / scales[name] for name in trained.ends}
    return Curves(amounts, distance, found["probability"])


def draw_invariance(curves: Mapping[str, Curves]) -> Figure:
    """Draws distances and probabilities, a row for each kind of transform."""
    figure, axes = new_figure(3, len(curves), height=2.6)
    for row, (kind, found) in zip(axes, curves.items(), strict=True):
        titles = (*(f"distance in {name}" for name in found.distance), "probability")
        values = [*found.distance.values(), found.probability]
        for axis, each, title in zip(row, values, titles, strict=True):
            for i in range(min(SHOWN, each.shape[1])):
                axis.plot(found.amounts, each[:, i], color=COLORS[i], alpha=0.7)
            axis.plot(found.amounts, each.mean(1), color="black", linewidth=2)
            axis.set(xlabel=kind, title=title, ylim=(0, None))
    return figure


def invariance_bands(curves: Mapping[str, Curves]) -> list[Band]:
    """Returns bands for the paper's observations on its invariance curves."""
    shift, _, turn = curves.values()
    least = np.argsort(np.abs(shift.amounts), kind="stable")
    # The smallest translation other than 0, in either direction.
    first = next(i for i in least if shift.amounts[i])
    lowest, highest = (each[first].mean() for each in shift.distance.values())
    small = np.abs(shift.amounts) <= np.abs(shift.amounts).max() / 2
    return [
        Band(
            f"translation by {abs(shift.amounts[first]):.2g} pixels: distance in the "
            "stem / in the last stage",
            float(lowest / highest),
            low=1.0,
            reason="small transformations matter in the first layer, less at the top",
            published="figure 5: dramatic in the first layer",
        ),
        Band(
            "mean probability of the true class: small translations minus rotations",
            float(shift.probability[small].mean() - turn.probability.mean()),
            low=0.1,
            reason="the output is stable to translations, not to rotations",
            published="figure 5: not invariant to rotation",
        ),
    ]


def ablate_blocks(trained: Trained) -> Ablation:
    """Measures the accuracy without the branches of a block, or of a whole stage."""
    predict = jit_inference(trained.model.apply)

    def accuracy(paths: Sequence[str]) -> float:
        cut = explain.ablate(trained.variables, paths)
        logits = np.asarray(predict(cut, trained.images))
        return float((logits.argmax(-1) == trained.labels).mean())

    stages = trained.variables["params"]["backbone"]
    blocks = {
        stage: [
            # The last batch norm of the block's branch.
            f"backbone/{stage}/{block}/{max(n for n in layers if n.startswith('bn'))}"
            for block, layers in stages[stage].items()
        ]
        for stage in sorted(stages)
        if stage.startswith("stage")
    }
    return {
        "nothing": {"": accuracy([])},
        "a block": {
            path.split("/", 1)[1].rsplit("/", 1)[0]: accuracy([path])
            for paths in blocks.values()
            for path in paths
        },
        "a stage": {stage: accuracy(paths) for stage, paths in blocks.items()},
    }


def draw_ablation(ablation: Ablation) -> Figure:
    """Draws the accuracy without each part."""
    count = sum(map(len, ablation.values()))
    figure, ((axis,),) = new_figure(height=0.28 * count + 1)
    for (kind, found), color in zip(ablation.items(), COLORS, strict=False):
        names = [name or kind for name in found]
        axis.barh(names, [100 * value for value in found.values()], color=color)
    axis.invert_yaxis()
    axis.set(xlabel="accuracy without it (%)", xlim=(0, 100))
    return figure


def ablation_table(ablation: Ablation) -> Table:
    """Lists the accuracies."""
    rows = [
        (kind, name, f"{100 * value:.1f} %")
        for kind, found in ablation.items()
        for name, value in found.items()
    ]
    note = (
        "Published, of AlexNet trained anew without them: layers 3 and 4 45.4 / 22.1 "
        "%, 6 and 7 44.8 / 22.4 %, all four 71.3 / 50.1 % error (top 1 / 5), whole "
        "40.5 / 18.1 % (table 3)."
    )
    return Table("Accuracy without parts", ("without", "", "accuracy"), rows, note)


def compare_parts(sizes: Sizes) -> dict[str, dict[str, float]]:
    """Measures the correspondence of the parts of faces, by part and endpoint."""
    model, variables, card = zoo.create_with_card(
        "deepface_small", weights="faces_synthetic"
    )
    side = card.preprocess.size
    crops, places = [], []
    for person in range(sizes.faces):
        # The network has never seen these people.
        example = draw_example(100_000 + person, 0)
        landmarks = jnp.asarray(example["landmarks"])
        image = jnp.asarray(np.asarray(example["image"]))
        crops.append(to_uint8(align_2d(image, landmarks, size=side)))
        template = make_template(len(landmarks), side)
        points = pick_fiducials(landmarks)
        places.append(transform(fit_similarity(points, template), points))
    images = zoo.normalize(jnp.stack(crops), card.preprocess)
    places = np.stack(places)
    half = BOX * side / 2
    rng = np.random.default_rng(0)
    centers = {part: [places[:, i]] for i, part in enumerate(PARTS)}
    centers["random"] = rng.uniform(half, side - half, (sizes.draws, sizes.faces, 2))
    shapes = zoo.list_endpoints(model, card.preprocess.shape)
    endpoints = [name for name in shapes if name != "logits"]
    return {
        part: {
            endpoint: float(
                np.mean(
                    [
                        explain.correspondence(
                            model,
                            variables,
                            images,
                            np.concatenate([each - half, each + half], axis=1),
                            endpoint,
                        )
                        for each in found
                    ]
                )
            )
            for endpoint in endpoints
        }
        for part, found in centers.items()
    }


def draw_parts(parts: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draws the distance of each part by layer."""
    figure, ((axis,),) = new_figure()
    for (part, found), color in zip(parts.items(), COLORS, strict=False):
        style = "k--" if part == "random" else "o-"
        options = {} if part == "random" else {"color": color}
        axis.plot([*found], [*found.values()], style, label=part, **options)
    axis.set(xlabel="layer", ylabel="Hamming distance", ylim=(0, None))
    axis.legend(frameon=False)
    return figure


def parts_table(parts: Mapping[str, Mapping[str, float]]) -> Table:
    """Lists the distances."""
    layers = [*next(iter(parts.values()))]
    rows = [
        (part, *(f"{found[layer]:.3f}" for layer in layers))
        for part, found in parts.items()
    ]
    note = "Published, of dogs, layers 5 and 7: " + "; ".join(
        f"{part} {a} and {b}" for part, (a, b) in PUBLISHED.items()
    )
    return Table("Correspondence of parts", ("hidden", *layers), rows, note)


def other_bands(
    ablation: Ablation, parts: Mapping[str, Mapping[str, float]]
) -> list[Band]:
    """Returns bands for the paper's claims on ablation and correspondence."""
    whole = ablation["nothing"][""]
    block, stage = (
        float(np.median([*ablation[kind].values()])) for kind in ("a block", "a stage")
    )
    known = np.mean([parts[part]["c3"] for part in PARTS])
    return [
        Band(
            "accuracy lost without one block, median",
            whole - block,
            high=0.2,
            reason="no layer alone is what the network needs",
            published="0.049 without layers 3 and 4 (top 1)",
        ),
        Band(
            "accuracy without a block minus without a stage, median",
            block - stage,
            low=0.0,
            reason="the depth as a whole matters",
            published="0.308 - 0.049",
        ),
        Band(
            "c3: distance of random boxes minus that of parts",
            float(parts["random"]["c3"] - known),
            low=0.0,
            reason="the network relates the same parts of different faces",
            published="0.107 - 0.072 in layer 5, 0.073 - 0.069 in layer 7",
        ),
    ]


STUDY = Study(
    name="visualization",
    claim=(
        "The features of higher layers are more invariant, depth as a whole matters "
        "more than any layer, and the same parts of objects change features alike."
    ),
    reference=(
        "Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, "
        "2014, figures 4 and 5, table 3, and, in its first version (arXiv 1311.2901), "
        "table 1. Veit, Wilber, Belongie, Residual Networks Behave Like Ensembles of "
        "Relatively Shallow Networks, 2016."
    ),
    run=run,
    scales={
        "smoke": Sizes(None, "digits", 6, 3, 2, 1, depth=8, width=4, steps=2),
        "quick": Sizes(None, "digits", 364, 17, 12, 10, depth=56, width=8, steps=250),
        "medium": Sizes("cifar10_20epochs", "cifar10", 1000, 33, 24, 20),
        "full": Sizes(
            "imagenet",
            "imagefolder:imagenet",
            images=500,
            transforms=61,
            faces=100,
            draws=50,
            model="resnet50",
            ends=("stem", "stage4"),
        ),
    },
    changes={
        "quick": "A ResNet-56 of 8 channels trained on digits; blocks lose their "
        "branches, and nothing is trained anew; parts of drawn faces and a DeepFace of "
        "others.",
        "medium": "The package's ResNet-20 of CIFAR-10; the rest as in quick.",
        "full": "torchvision's ResNet-50, as there are no weights of zfnet; 500 of "
        "ImageNet's validation images in a folder DIR/test/WNID; the rest as in quick.",
    },
    data_scales=("medium", "full"),
)
