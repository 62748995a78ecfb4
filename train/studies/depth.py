"""The spectrum of depth: published errors against depth, computation and parameters.

python -m train study depth
"""

import dataclasses
import re

from scipy.stats import spearmanr

import zoo
from train.studies.drawing import COLORS, new_figure
from train.studies.study import Band, Job, Outcome, Study, Table
from zoo.spec import ModelSpec
from zoo.weights.trained import read_record

# Regular expressions of the names of each family's networks.
FAMILIES = {
    "AlexNet, ZFNet": r"alexnet|zfnet",
    "VGG": r"vgg\d+(_c)?",
    "GoogLeNet": r"googlenet",
    "He et al. 2015 (PReLU)": r"msra_\w+|relu30",
    "plain": r"plain\d+",
    "ResNet": r"resnet\d+(_v2)?",
}
# Year, entry, layers, number of networks, top-5 error of ILSVRC's test set in percent.
ENTRIES = (
    (2012, "AlexNet", 8, 5, 16.4),
    (2013, "Zeiler and Fergus", 8, 6, 14.8),
    (2014, "VGG", 19, 7, 7.3),
    (2014, "GoogLeNet", 22, 7, 6.67),
    (2015, "He et al. (PReLU)", 22, 6, 4.94),
    (2015, "ResNet", 152, 6, 3.57),
)


@dataclasses.dataclass(frozen=True)
class Point:
    """A network in the chart.

    Attributes:
      name: Registered name.
      family: A key of `FAMILIES`.
      depth: Number of layers with weights on the longest path.
      params: Number of parameters.
      macs: Multiply-adds for one image.
      top1: First published top-1 error in percent; None if there is none.
      top5: First published top-5 error in percent; None if there is none.
      protocol: The published result as the specification states it.
    """

    name: str
    family: str
    depth: int
    params: int
    macs: int
    top1: float | None
    top5: float | None
    protocol: str


def run(job: Job) -> Outcome:
    """Reads the specifications; nothing is trained and nothing is random."""
    points = [
        make_point(name, family)
        for family, pattern in FAMILIES.items()
        for name in zoo.list_models(task="classification")
        if re.fullmatch(pattern, name) and (job.sizes or name in ("alexnet", "vgg16"))
    ]
    cifar = [
        zoo.get_spec(f"cifar_resnet{depth}") for depth in (20, 32, 44, 56, 110, 1202)
    ]
    return Outcome(
        figures=[
            (
                "Published top-5 error on ImageNet's validation images against depth, "
                "multiply-adds and parameters; one network each, by the first protocol "
                "in the table.",
                draw_points(points),
            ),
            (
                "Left: entries of the ILSVRC by year, several networks each. Right: "
                "ResNets on CIFAR-10: the paper's (table 6), the public weights that "
                "the zoo loads, and those of the package.",
                draw_entries(cifar),
            ),
        ],
        tables=[point_table(points), entry_table()],
        bands=make_bands(points) if job.sizes else [],
        values={"networks": points},
    )


def make_point(name: str, family: str) -> Point:
    """Reads a network's specification."""
    spec = zoo.get_spec(name)
    top1, top5, protocol = None, None, spec.published[0]
    for text in spec.published:
        if top1 is None and (found := re.search(r"error (\d[\d.]*) %", text)):
            top1, protocol = float(found[1]), text
        if top5 is None and (found := re.search(r"top-5\D*?(\d[\d.]*) %", text)):
            top5, protocol = float(found[1]), text
    return Point(
        name, family, count_depth(spec), spec.params, spec.macs, top1, top5, protocol
    )


def count_depth(spec: ModelSpec) -> int:
    """Counts the layers with weights on the longest path from image to logits."""
    model = zoo.build(spec.name, num_classes=spec.num_classes)
    weighted = [
        layer.path
        for layer in zoo.list_layers(model, spec.preprocess.shape)
        if layer.macs and "shortcut" not in layer.path and "aux" not in layer.path
    ]
    # The longest branches of an inception module have two convolutions.
    modules = {path.split("/")[1] for path in weighted if "inception" in path}
    return 2 * len(modules) + sum("inception" not in path for path in weighted)


def draw_points(points: list[Point]):
    """Draws top-5 error against depth, multiply-adds and parameters."""
    figure, axes = new_figure(3, height=4, sharey=True)
    labels = ("layers with weights", "multiply-adds", "parameters")
    for axis, field, label in zip(
        axes[0], ("depth", "macs", "params"), labels, strict=True
    ):
        for family, color in zip(FAMILIES, COLORS, strict=False):
            shown = [p for p in points if p.family == family and p.top5 is not None]
            shown.sort(key=lambda p: getattr(p, field))
            x = [getattr(p, field) for p in shown]
            y = [p.top5 for p in shown]
            style = "o-" if field == "depth" else "o"
            axis.plot(x, y, style, color=color, label=family, lw=1, ms=5)
        axis.set(xscale="log", xlabel=label)
    axes[0, 0].set_ylabel("top-5 error (%)")
    ticks = (8, 11, 16, 22, 34, 50, 101, 152)
    axes[0, 0].set_xticks(ticks, [str(t) for t in ticks])
    axes[0, 0].minorticks_off()
    axes[0, 0].legend(frameon=False, fontsize=8)
    return figure


def draw_entries(cifar: list[ModelSpec]):
    """Draws the competition's entries, and CIFAR-10's errors by depth."""
    figure, (axes,) = new_figure(2, height=4)
    names = [f"{name}\n{year}, {depth} layers" for year, name, depth, *_ in ENTRIES]
    bars = axes[0].barh(names, [entry[-1] for entry in ENTRIES], color=COLORS[0])
    axes[0].bar_label(bars, padding=3)
    axes[0].invert_yaxis()
    axes[0].set(xlabel="top-5 error on the test set (%)")
    depths = [int(spec.name.removeprefix("cifar_resnet")) for spec in cifar]
    papers = [float(re.search(r"error ([\d.]+)", s.published[0])[1]) for s in cifar]
    public = [
        100 - float(re.match(r"[\d.]+", spec.weights[0].accuracy)[0]) for spec in cifar
    ]
    axes[1].plot(depths, papers, "o-", color=COLORS[0], label="paper")
    axes[1].plot(depths, public, "o--", color=COLORS[1], label="public weights")
    ours = read_record("cifar_resnet20", "cifar10_20epochs")
    error = 100 * (1 - ours["measured"]["top-1"])
    axes[1].plot(20, error, "s", color=COLORS[2], label="trained here, 20 epochs")
    axes[1].set(xscale="log", xlabel="layers", ylabel="CIFAR-10 test error (%)")
    axes[1].set_xticks(depths, [str(depth) for depth in depths])
    axes[1].minorticks_off()
    axes[1].legend(frameon=False)
    return figure


def point_table(points: list[Point]) -> Table:
    """Lists the networks."""
    rows = [
        (
            p.name,
            p.depth,
            f"{p.macs / 1e9:.2f}",
            f"{p.params / 1e6:.1f}",
            "" if p.top1 is None else f"{p.top1:g}",
            "" if p.top5 is None else f"{p.top5:g}",
            p.protocol,
        )
        for p in sorted(points, key=lambda p: p.depth)
    ]
    header = ("network", "layers", "GMAC", "M params", "top-1 %", "top-5 %")
    return Table("Networks", (*header, "published as"), rows)


def entry_table() -> Table:
    """Lists the competition's entries."""
    header = ("year", "entry", "layers", "networks", "top-5 error %")
    return Table("ILSVRC, test set, ensembles", header, ENTRIES)


def make_bands(points: list[Point]) -> list[Band]:
    """Returns the claim as expected bands."""
    top5 = {p.name: p for p in points if p.top5 is not None}
    top1 = {p.name: p.top1 for p in points}
    residual = [top5[f"resnet{depth}"].top5 for depth in (34, 50, 101, 152)]
    trained = [p for name, p in top5.items() if name != "relu30"]
    return [
        Band(
            "rank correlation of depth and top-5 error, all networks but relu30",
            rank_correlation([p.depth for p in trained], [p.top5 for p in trained]),
            high=-0.7,
            reason="deeper networks have lower errors, across families and protocols",
        ),
        Band(
            "rank correlation of depth and top-5 error, ResNets of 34 to 152 layers",
            rank_correlation([34, 50, 101, 152], residual),
            high=-1.0,
            reason="with shortcuts each deeper network is better (tables 3 and 4)",
            published="7.76, 6.71, 6.05, 5.71 %",
        ),
        Band(
            "top-1 error of plain34 minus plain18, points",
            top1["plain34"] - top1["plain18"],
            low=0.3,
            reason="without shortcuts the deeper network is worse (table 2)",
            published="28.54 - 27.94 %",
        ),
        Band(
            "top-5 error of relu30 minus msra_small14, points",
            top5["relu30"].top5 - top5["msra_small14"].top5,
            low=3.0,
            reason="30 layers without shortcuts converge, and to a higher error",
            published="16.59 - 12.75 % (13.34 % with ReLU)",
        ),
        Band(
            "multiply-adds of resnet152_v1 divided by vgg19's",
            zoo.get_spec("resnet152_v1").macs / zoo.get_spec("vgg19").macs,
            high=0.6,
            reason="depth is not bought with computation: eight times as many layers",
            published="11.3 and 19.6 billion",
        ),
    ]


def rank_correlation(x: list[float], y: list[float]) -> float:
    """Returns Spearman's rank correlation, with mean ranks for ties."""
    return round(float(spearmanr(x, y).statistic), 4)


STUDY = Study(
    name="depth",
    claim=(
        "The spectrum of depth: from 8 layers in 2012 to 152 in 2015 the error falls "
        "as the depth grows, as long as the network can be trained."
    ),
    reference=(
        "Krizhevsky et al. 2012; Zeiler and Fergus 2014; Simonyan and Zisserman 2014; "
        "Szegedy et al. 2014; He et al. 2015 (PReLU; ResNet): each network's table as "
        "its specification names it."
    ),
    run=run,
    # The value is whether all networks are read.
    scales={"smoke": False, "quick": True, "full": True},
    changes=dict.fromkeys(
        ("quick", "full"), "Nothing is trained: the numbers are those of the papers."
    ),
)
