"""A fully convolutional network is the classifier slid over the image, at less cost.

python -m train study sliding_window
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import zoo
from train.data.formats.digits import read_digits
from train.studies.drawing import COLORS, new_figure
from train.studies.runner import Arrays, short_config, train_in_memory
from train.studies.study import Band, Job, Outcome, Study, Table
from zoo.cpu import jit_inference
from zoo.layers import per_channel
from zoo.ops.convolution import convolve
from zoo.ops.pooling import max_pool

WINDOW, STRIDE = 28, 4  # of lenet5_modern, in pixels
DIGIT = 20  # height and width of a digit, in pixels
NOTHING = 10  # the class of windows without a digit at their center


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The size of the study.

    Attributes:
      windows: Number of windows to train on.
      steps: Length of the training, in steps.
      canvas: Height and width of the images of the comparison, in pixels.
      canvases: Number of these images.
      lenet_sides: Sides of the images for the speed of the small network, in pixels.
      alexnet_sides: Sides of the images for AlexNet's speed; empty to leave it out.
      repeats: Number of measurements of each time, of which the least is taken.
    """

    windows: int
    steps: int
    canvas: int
    canvases: int
    lenet_sides: tuple[int, ...]
    alexnet_sides: tuple[int, ...]
    repeats: int


def run(job: Job) -> Outcome:
    """Trains a classifier of windows, slides it over images, and compares."""
    sizes = job.sizes
    images, labels, test = read_digits()
    training = draw_windows(images[~test], labels[~test], sizes.windows, seed=0)
    testing = draw_windows(images[test], labels[test], 1000, seed=1)
    config = short_config(
        "lenet5_modern",
        batch_size=64,
        steps=sizes.steps,
        seed=0,
        learning_rate=0.01,
        momentum=0.9,
        weight_decay=5e-4,
    )
    curve, variables = train_in_memory(config, Arrays(*training, *testing))
    model = zoo.build("lenet5_modern", num_classes=NOTHING + 1)
    classify = jit_inference(model.apply)
    rng = np.random.default_rng(2)
    scenes = [
        draw_canvas(images[test], labels[test], sizes.canvas, rng)
        for _ in range(sizes.canvases)
    ]
    canvases = np.stack([canvas for canvas, _ in scenes])
    slid = np.asarray(jit_inference(slide)(variables, canvases))
    crops = cut_windows(canvases, WINDOW, STRIDE)
    one_by_one = np.asarray(classify(variables, crops.reshape(-1, *crops.shape[3:])))
    difference = float(np.abs(slid.reshape(one_by_one.shape) - one_by_one).max())
    speeds = {
        "lenet5_modern": [
            compare_lenet(variables, side, sizes.repeats) for side in sizes.lenet_sides
        ]
    }
    if sizes.alexnet_sides:
        speeds["alexnet"] = [
            compare_alexnet(side, sizes.repeats) for side in sizes.alexnet_sides
        ]
    return Outcome(
        figures=[
            (
                "A canvas of test digits, and the probability that the window around "
                "each place shows a digit, by the network slid at once; the number is "
                "the class of the window, where that is one.",
                draw_heat(canvases[0], slid[0]),
            ),
            (
                "How many times less time and fewer multiply-adds the whole image "
                "takes at once than window by window (in one batch).",
                draw_speed(speeds),
            ),
        ],
        tables=[speed_table(speeds)],
        bands=[
            Band(
                f"largest difference of the logits over {len(one_by_one)} windows",
                difference,
                high=1e-5 * max(1.0, float(np.abs(one_by_one).max())),
                reason="the same sums in another order: rounding alone; relative to "
                f"the largest logit, {np.abs(one_by_one).max():.1f}",
            ),
            *(
                Band(
                    f"{name}: multiply-adds of windows to those at once, {row.side} px",
                    row.macs_ratio,
                    low=2.0,
                    reason="what overlapping windows share is computed once",
                )
                for name, rows in speeds.items()
                for row in rows[-1:]
            ),
            *(
                Band(
                    f"{name}: time of windows to that at once, {row.side} px",
                    row.seconds_ratio,
                    low=1.5,
                    reason="the multiply-adds' ratio, less what a batch gains",
                    published="more than 5 (FCN, section 3.1: AlexNet, 10 x 10 outputs)"
                    if name == "alexnet"
                    else "",
                )
                for name, rows in speeds.items()
                for row in rows[-1:]
            ),
        ],
        seeds=(0,),
        remarks=[
            "Windows and image agree to rounding where the convolutions have no "
            "padding, as LeNet's. AlexNet's pad each window with zeros, and the whole "
            "image only at its border: there the comparison is of time."
        ],
        values={
            "largest_difference": difference,
            "windows": len(one_by_one),
            "test_error_of_windows": curve.test_error[-1],
            "speed": speeds,
        },
    )


def slide(variables: Mapping[str, Any], images: jax.Array) -> jax.Array:
    """Applies `lenet5_modern` to every window of images of any size.

    The first dense layer becomes a 4 x 4 convolution, the size of its input map, and
    the second a 1 x 1 convolution; the parameters are the classifier's own.

    Args:
      variables: Variables of the classifier.
      images: float32 [B, H, W, 1], preprocessed.

    Returns:
      Logits float32 [B, (H - 28) / 4 + 1, (W - 28) / 4 + 1, K].
    """
    backbone, head = variables["params"]["backbone"], variables["params"]["head"]

    def conv(x: jax.Array, layer: Mapping[str, Any], window: int) -> jax.Array:
        kernel = layer["kernel"]
        kernel = kernel.reshape(window, window, -1, kernel.shape[-1])
        y = convolve(x, kernel)
        return y + per_channel(layer["bias"], y)

    x = max_pool(conv(images, backbone["conv1"], 5), 2, 2)
    x = max_pool(conv(x, backbone["conv2"], 5), 2, 2)
    x = jax.nn.relu(conv(x, backbone["ip1"], 4))
    return conv(x, head["ip2"], 1)


def cut_windows(images: np.ndarray, window: int, stride: int) -> np.ndarray:
    """Cuts images [B, H, W, C] into windows [B, rows, columns, window, window, C]."""
    axes = (window, window)
    found = np.lib.stride_tricks.sliding_window_view(images, axes, axis=(1, 2))
    return np.ascontiguousarray(np.moveaxis(found, 3, -1)[:, ::stride, ::stride])


def draw_canvas(
    images: np.ndarray, labels: np.ndarray, side: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Places digits at random on black, without overlap.

    Returns:
      The canvas, float32 [side, side, 1] in [0, 1], and for each digit the row and
      column of its upper left corner, and its class.
    """
    canvas, placed = np.zeros((side, side, 1), np.float32), []
    for _ in range(8 * (side // WINDOW) ** 2):
        row, column = rng.integers(4, side - DIGIT - 3, 2)
        if all(max(abs(row - r), abs(column - c)) >= DIGIT + 2 for r, c, _ in placed):
            i = int(rng.integers(len(images)))
            shape = (DIGIT, DIGIT)
            digit = jax.image.resize(images[i].astype(np.float32), shape, "bilinear")
            place = np.s_[row : row + DIGIT, column : column + DIGIT, 0]
            canvas[place] = np.asarray(digit) / 255
            placed.append((int(row), int(column), int(labels[i])))
    return canvas, placed


def draw_windows(
    images: np.ndarray, labels: np.ndarray, count: int, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts windows out of canvases, about half of them centered on a digit.

    These are off the digit's center by at most 2 pixels; the centers of the others are
    at least 7 pixels from that of any digit, along one axis.
    """
    rng, windows, classes = np.random.default_rng(seed), [], []
    margin = (WINDOW - DIGIT) // 2
    while len(windows) < count:
        canvas, placed = draw_canvas(images, labels, 112, rng)
        for row, column, label in placed:
            shift = rng.integers(-2, 3, 2)
            row, column = np.array([row, column]) - margin + shift
            limit = 112 - WINDOW
            row, column = np.clip([row, column], 0, limit)
            windows.append(canvas[row : row + WINDOW, column : column + WINDOW])
            classes.append(label)
            row, column = rng.integers(0, limit + 1, 2)
            off = [
                max(abs(row + margin - r), abs(column + margin - c))
                for r, c, _ in placed
            ]
            if min(off) >= 7:
                windows.append(canvas[row : row + WINDOW, column : column + WINDOW])
                classes.append(NOTHING)
    return np.stack(windows[:count]), np.array(classes[:count], np.int32)


@dataclasses.dataclass(frozen=True)
class Speed:
    """Times and multiply-adds for one image.

    Attributes:
      side: Height and width of the image, in pixels.
      windows: Number of windows.
      seconds: Time for the image at once, see `_time`.
      windows_seconds: Time for all its windows.
      seconds_ratio: `windows_seconds` divided by `seconds`.
      macs_ratio: Multiply-adds of all windows divided by those at once.
    """

    side: int
    windows: int
    seconds: float
    windows_seconds: float
    seconds_ratio: float
    macs_ratio: float


def compare_speed(
    at_once: Callable,
    one: Callable,
    *,
    shape: tuple[int, int, int],
    window: int,
    stride: int,
    macs: tuple[int, int],
    repeats: int,
) -> Speed:
    """Times an image at once and window by window.

    Args:
      at_once: Function from images [1, H, W, C] to the logits of all windows.
      one: Function from windows [N, window, window, C] to their logits.
      shape: Shape (H, W, C) of the image.
      window: Height and width of a window, in pixels.
      stride: Distance between windows, in pixels.
      macs: Multiply-adds of the whole image at once, and of one window.
      repeats: Number of measurements, of which the least is taken.
    """
    image = np.random.default_rng(0).random((1, *shape), np.float32)
    crops = cut_windows(image, window, stride)
    count = crops.shape[1] * crops.shape[2]
    crops = crops.reshape(count, window, window, shape[-1])
    seconds = [
        _time(jit_inference(at_once), jnp.asarray(image), repeats),
        _time(jit_inference(one), jnp.asarray(crops), repeats),
    ]
    ratios = seconds[1] / seconds[0], count * macs[1] / macs[0]
    return Speed(shape[0], count, *seconds, *ratios)


def compare_lenet(variables: Mapping[str, Any], side: int, repeats: int) -> Speed:
    """Compares the small network's speeds on an image of a given side."""
    model = zoo.build("lenet5_modern", num_classes=NOTHING + 1)
    layers = zoo.list_layers(model, (WINDOW, WINDOW, 1))
    # The side of each layer's map on the whole image, and on a window.
    rows = (side - WINDOW) // STRIDE + 1
    sides = {"conv1": side - 4, "conv2": (side - 4) // 2 - 4, "ip1": rows, "ip2": rows}
    at_once = 0
    for layer in layers:
        of_window = layer.shape[0] if len(layer.shape) == 3 else 1
        ratio = sides[layer.path.split("/")[-1]] / of_window
        at_once += round(layer.macs * ratio**2)
    return compare_speed(
        lambda images: slide(variables, images),
        lambda crops: model.apply(variables, crops),
        shape=(side, side, 1),
        window=WINDOW,
        stride=STRIDE,
        macs=(at_once, sum(layer.macs for layer in layers)),
        repeats=repeats,
    )


def compare_alexnet(side: int, repeats: int) -> Speed:
    """Compares AlexNet's speeds, with initial weights, at its stride of 32 pixels."""
    model, variables = zoo.create("alexnet")
    whole = zoo.build("alexnet", num_classes=1000, fully_convolutional=True)
    macs = [
        sum(layer.macs for layer in zoo.list_layers(net, (size, size, 3)))
        for net, size in ((whole, side), (model, 227))
    ]
    return compare_speed(
        lambda images: whole.apply(variables, images),
        lambda crops: model.apply(variables, crops),
        shape=(side, side, 3),
        window=227,
        stride=32,
        macs=(macs[0], macs[1]),
        repeats=repeats,
    )


def _time(function: Callable, x: jax.Array, repeats: int) -> float:
    """Returns the least time of some calls, in seconds: on CPUs, CPU time."""
    on_cpu = jax.default_backend() == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    jax.block_until_ready(function(x))
    times = []
    for _ in range(repeats):
        start = clock()
        jax.block_until_ready(function(x))
        times.append(clock() - start)
    return min(times)


def draw_heat(canvas: np.ndarray, logits: np.ndarray):
    """Draws a canvas and, by position, the probability that a window shows a digit."""
    shares = np.asarray(jax.nn.softmax(logits, axis=-1))
    figure, (axes,) = new_figure(2, height=4.6)
    axes[0].imshow(canvas[..., 0], cmap="gray")
    axes[0].set_title("image")
    heat = axes[1].imshow(1 - shares[..., NOTHING], cmap="viridis", vmin=0, vmax=1)
    for row, column in np.argwhere(shares.argmax(-1) != NOTHING):
        label = str(shares[row, column].argmax())
        options = dict(ha="center", va="center", fontsize=7, color="black")
        axes[1].text(column, row, label, **options)
    rows, columns = logits.shape[:2]
    axes[1].set_title(f"probability of a digit, {rows} x {columns} windows at once")
    figure.colorbar(heat, ax=axes[1], shrink=0.8)
    for axis in axes:
        axis.grid(False)
        axis.set_axis_off()
    return figure


def draw_speed(speeds: Mapping[str, list[Speed]]):
    """Draws both ratios by the size of the image."""
    figure, (axes,) = new_figure(len(speeds), height=3.6)
    for axis, (name, rows) in zip(axes, speeds.items(), strict=True):
        sides = [row.side for row in rows]
        ratios = [row.macs_ratio for row in rows]
        axis.plot(sides, ratios, "o--", color=COLORS[1], label="multiply-adds")
        ratios = [row.seconds_ratio for row in rows]
        axis.plot(sides, ratios, "o-", color=COLORS[0], label="time")
        axis.axhline(1, color="black", lw=0.8)
        axis.set(title=name, xlabel="height and width (pixels)", ylabel="times less")
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False)
    return figure


def speed_table(speeds: Mapping[str, list[Speed]]) -> Table:
    """Lists the times."""
    rows = [
        (
            name,
            row.side,
            row.windows,
            f"{1000 * row.seconds:.1f}",
            f"{1000 * row.windows_seconds:.1f}",
            f"{row.seconds_ratio:.1f}",
            f"{row.macs_ratio:.1f}",
        )
        for name, found in speeds.items()
        for row in found
    ]
    header = ("network", "pixels", "windows", "ms at once", "ms window by window")
    return Table(
        "Time for one image",
        (*header, "ratio", "ratio of multiply-adds"),
        rows,
        "Published for AlexNet on a GPU: 22 ms for the 10 x 10 outputs of an image of "
        "500 x 500, 1.2 ms for one window.",
    )


STUDY = Study(
    name="sliding_window",
    claim=(
        "A classifier whose dense layers are convolutions is the classifier slid over "
        "the image: the same scores at every place, for less."
    ),
    reference="Long et al., Fully Convolutional Networks, 2015, section 3.1.",
    run=run,
    scales={
        "smoke": Sizes(200, 4, 48, 1, (32, 48), (), 1),
        "quick": Sizes(6000, 600, 112, 4, (28, 56, 112, 224), (227, 355, 483), 3),
        "full": Sizes(
            60_000,
            6000,
            448,
            16,
            (28, 56, 112, 224, 448, 896),
            (227, 355, 483, 995),
            20,
        ),
    },
    changes={
        "quick": "A LeNet on windows of embedded digits, of 28 pixels at a stride of "
        "4, for the comparison; AlexNet with initial weights, whose speed is that of "
        "trained ones; CPU in place of the paper's GPU, and 483 pixels (9 x 9 outputs) "
        "in place of 500, as the layers of the zoo's network count them.",
        "full": "The same at more sizes, with more images and measurements; on a GPU "
        "or TPU the wall time, as in the paper.",
    },
)
