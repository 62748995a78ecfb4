"""Recipes of detection and segmentation: on files in their layout, they can be traced.

Nothing is computed: networks and steps are traced for the shapes of one batch.
"""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from PIL import Image

import zoo
from train.config import parse_options
from train.configs import CONFIGS, get_config
from train.configs.segmentation import CAMVID
from train.data import fit_source, parse_geometry, train_stream
from train.experiment import check_augment, fit_preprocess, open_split
from train.optim import frozen_paths, make_optimizer, make_schedule, parse_rates
from train.state import create_state
from train.steps import make_prepare, make_train_step
from train.tasks import TASKS, make_task
from zoo.ops import augment
from zoo.paths import flatten, match_paths
from zoo.summary import abstract_variables

RECIPES = [
    name for name in CONFIGS if name.startswith(("voc_", "coco_", "camvid_", "citys"))
]
# The networks of others on larger images: `pytest -m apart` runs them.
BOX = "<bndbox><xmin>{}</xmin><ymin>9</ymin><xmax>{}</xmax><ymax>90</ymax></bndbox>"
SIZE = "<size><width>120</width><height>100</height><depth>3</depth></size>"


def write_image(path, seed, size=(120, 100)):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(noise).save(path)


def write_mask(path, classes, size=(120, 100)):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.arange(size[0] * size[1]).reshape(size[::-1]) % classes
    Image.fromarray(mask.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """VOC, COCO and CamVid, of four images in each split."""
    root = tmp_path_factory.mktemp("sets")
    for year, splits in (("2007", ("trainval", "test")), ("2012", ("trainval",))):
        voc = root / "VOCdevkit" / f"VOC{year}"
        for split in splits:
            names = [f"{split}{i}" for i in range(4)]
            for i, name in enumerate(names):
                write_image(voc / "JPEGImages" / f"{name}.jpg", i)
                objects = f"<object><name>dog</name>{BOX.format(5, 60 + i)}</object>"
                path = voc / "Annotations" / f"{name}.xml"
                path.parent.mkdir(exist_ok=True)
                path.write_text(f"<annotation>{SIZE}{objects}</annotation>")
            path = voc / "ImageSets" / "Main" / f"{split}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(names))
        for split in ("train", "val"):
            names = [f"{split}{i}" for i in range(4)]
            for i, name in enumerate(names):
                write_image(voc / "JPEGImages" / f"{name}.jpg", i)
                write_mask(voc / "SegmentationClass" / f"{name}.png", 21)
            path = voc / "ImageSets" / "Segmentation" / f"{split}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(names))
    for split in ("train", "val"):
        files = [f"{i}.jpg" for i in range(4)]
        for i, file in enumerate(files):
            write_image(root / "coco" / f"{split}2017" / file, i)
        text = {
            "images": [
                {"id": i, "file_name": file, "width": 120, "height": 100}
                for i, file in enumerate(files)
            ],
            "annotations": [
                {
                    "id": i,
                    "image_id": i,
                    "category_id": 1 + i % 3,
                    "bbox": [5, 6, 70, 60],
                    "iscrowd": 0,
                    "area": 4200,
                }
                for i in range(4)
            ],
            "categories": [{"id": i, "name": f"class {i}"} for i in (1, 2, 3)],
        }
        path = root / "coco" / "annotations" / f"instances_{split}2017.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(text))
    for split in ("train", "test"):
        for i in range(4):
            write_image(root / "camvid" / split / "images" / f"{i}.png", i, (480, 360))
            write_mask(root / "camvid" / split / "masks" / f"{i}.png", 12, (480, 360))
    return root


def load_batch(config, preprocess, folder):
    """One batch of two images as the training sees it, and the names of the classes."""
    data, task = config.data, zoo.get_spec(config.model.name).task
    if data.dataset == "cityscapes":  # Its archives cannot be made here.
        height, width, _ = preprocess.shape
        return 19, {
            "image": np.zeros((2, height, width, 3), np.uint8),
            "mask": np.zeros((2, height, width), np.uint8),
            "size": np.full((2, 2), (height, width), np.int32),
            "index": np.arange(2, dtype=np.int32),
        }
    data = dataclasses.replace(data, data_dir=str(folder))
    open_split(data, data.eval_split, task)
    source = open_split(data, data.train_split, task)
    fitted = fit_source(source, preprocess, max_boxes=data.max_boxes)
    stream = iter(
        train_stream(
            fitted,
            preprocess,
            batch_size=2,
            seed=0,
            geometry=data.geometry,
            max_boxes=data.max_boxes,
        )
    )
    batch = next(stream)
    stream.close()
    return len(source.class_names), batch


@pytest.mark.parametrize("name", RECIPES)
def test_changes_of_recipes_can_be_read(name):
    config = get_config(name)
    spec, data = zoo.get_spec(config.model.name), config.data
    preprocess = fit_preprocess(spec.preprocess, data.fit, data.size)
    parse_geometry(data.geometry, preprocess, task=spec.task, seed=0)
    check_augment(data.augment, TASKS[spec.task])


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.apart] * (n != "voc_ssd300")) for n in RECIPES],
)
def test_recipes_can_be_traced_on_their_data(name, folder):
    config = get_config(name)
    spec, data = zoo.get_spec(config.model.name), config.data
    options = dict(option.split("=") for option in config.model.options)
    options = {k: True if v == "True" else v for k, v in options.items()}
    preprocess = fit_preprocess(spec.preprocess, data.fit, data.size)
    fit_preprocess(preprocess, data.fit, data.eval_size)
    classes, batch = load_batch(config, preprocess, folder)
    assert batch["image"].shape == (2, *preprocess.shape)

    module = zoo.build(spec.name, num_classes=classes, **options)
    variables = abstract_variables(module, preprocess.shape)
    params = variables["params"]
    if config.model.layers:
        assert match_paths([*flatten(params)], config.model.layers)
    frozen = frozen_paths(config.optim, params, 0)
    schedule = make_schedule(config.optim, config.steps or 1000 * config.epochs)
    tx = make_optimizer(config.optim, schedule, params)
    task = make_task(spec, config.optim, data)
    step = make_train_step(
        module,
        task,
        tx,
        schedule=schedule,
        prepare=make_prepare(preprocess, augment.compose(data.augment)),
        seed=0,
        frozen=frozen,
    )
    state = jax.eval_shape(lambda v: create_state(v, tx, frozen=frozen), variables)
    after, scalars = jax.eval_shape(step, state, batch)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(
        lambda x: x.shape, state
    )
    assert {"loss", "grad_norm", "learning_rate"} < scalars.keys()


def test_what_is_frozen_and_taken():
    config = get_config("coco_faster_rcnn_fpn")
    spec = zoo.get_spec(config.model.name)
    params = abstract_variables(zoo.build(spec.name), (320, 320, 3))["params"]
    frozen = frozen_paths(config.optim, params, 0)
    assert "backbone/stage1/block1/conv1/kernel" in frozen
    assert "backbone/stage4/block1/shortcut_bn/scale" in frozen
    assert "backbone/stage2/block1/conv1/kernel" not in frozen
    assert not [path for path in frozen if path.startswith(("neck", "rpn", "box_head"))]
    # What is left is what torchvision trains.
    trained = {k: v for k, v in flatten(params).items() if k not in frozen}
    assert sum(math.prod(v.shape) for v in trained.values()) == 41_532_886


def test_the_rates_are_the_papers():
    for name, at, expected in (
        ("voc_ssd300", (0, 79_999, 80_001, 100_001), (1e-3, 1e-3, 1e-4, 1e-5)),
        ("coco_ssd300", (279_999, 280_001, 360_001), (1e-3, 1e-4, 1e-5)),
        ("voc_faster_rcnn", (49_999, 50_001), (1e-3, 1e-4)),
        # Half of Darknet's: its gradient is that of half the loss.
        ("voc_yolo", (0, 600, 19_999, 20_001, 30_001), (5e-4, 5e-3, 5e-3, 5e-4, 5e-5)),
        ("cityscapes_frrn", (44_999, 45_001), (1e-3, 1e-4)),
        ("cityscapes_pspnet", (0, 45_000), (0.01, 0.01 * 0.5**0.9)),
    ):
        config = get_config(name)
        schedule = make_schedule(config.optim, config.steps)
        found = [float(schedule(step)) for step in at]
        assert found == pytest.approx(expected, rel=1e-4), name
    assert len(CAMVID) == 11


def test_tiny_recipes_are_on_canvases_of_digits():
    config = get_config("camvid_segnet_tiny")
    assert config.data.dataset == "digits_canvas"
    assert config.data.classes == config.data.ignored == ()
    assert config.model.layers == ()
    assert config.steps == 3


def list_factors(name, size):
    """Returns the rate and the decay of each parameter of a recipe, as factors."""
    config = get_config(name)
    model = zoo.build(config.model.name, **parse_options(config.model.options))
    params = abstract_variables(model, size)["params"]
    paths = [*flatten(params)]
    rates = parse_rates(config.optim.rates, params)
    also = match_paths(paths, config.optim.decay_also)
    kernels = config.optim.decay == "kernels"
    many = {path for path, p in flatten(params).items() if len(p.shape) > 1}
    return {
        path: (rates.get(path, 1.0), not kernels or path in many or path in also)
        for path in paths
    }


@pytest.mark.parametrize(
    ("name", "size", "facts"),
    [
        (
            "camvid_segnet",
            (64, 64, 3),
            {
                "backbone/conv1_1/kernel": (1.0, True),
                "backbone/conv1_1/bias": (2.0, False),
                "backbone/bn1_1/scale": (1.0, True),
                "backbone/bn1_1/bias": (1.0, False),
                "head/conv5_1_D/bias": (2.0, False),
            },
        ),
        (
            "voc_ssd300",
            (300, 300, 3),
            {
                "backbone/conv4_3/bias": (2.0, False),
                "backbone/conv4_3_norm/scale_weight": (1.0, True),
                "head/fc7_loc/kernel": (1.0, True),
            },
        ),
        (
            "cityscapes_pspnet",
            (73, 73, 3),
            {
                "backbone/stage1/block1/bn1/scale": (1.0, True),
                "head/score/kernel": (10.0, True),
                "head/pool6_bn/scale": (10.0, True),
                "aux_head/score/bias": (10.0, True),
            },
        ),
    ],
)
def test_rates_and_decay_are_those_of_the_released_files(name, size, facts):
    factors = list_factors(name, size)
    assert {path: factors[path] for path in facts} == facts


def test_what_else_the_released_files_say():
    frrn = get_config("cityscapes_frrn")
    rate = make_schedule(frrn.optim, frrn.steps)
    rates = [float(rate(step)) for step in (0, 44_999, 45_001, 69_999)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])
    (move,) = frrn.data.geometry
    assert move.startswith("translate:")
    shares = [float(share) for share in move.split(":")[1:]]
    sides = frrn.data.size
    assert [s * n for s, n in zip(shares, sides, strict=True)] == [20, 20]
    assert get_config("camvid_segnet").data.geometry == ()
    faster = get_config("voc_faster_rcnn").optim
    assert (faster.rates, faster.decay) == (("**/bias=2",), "all")
    yolo = get_config("voc_yolo").optim
    # Half of Darknet's rate, and twice its decay: see the recipe.
    assert (yolo.learning_rate, yolo.weight_decay) == (0.01 / 2, 5e-4 * 2)
    assert yolo.decay == "kernels"
