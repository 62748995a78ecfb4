"""ImageNet's recipes: a few steps of each on small sets of ImageNet's layouts."""

import contextlib
import dataclasses
import io
import shutil
import sys
import tarfile
from functools import partial

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from flax import linen as nn
from PIL import Image
from processes import free_port, run_together
from tiny_runs import (
    assert_same_state,
    environment,
    flat,
    make_config,
    read_arrays,
    read_rows,
    to_file,
    write_images,
)

import zoo
from train.config import ModelConfig
from train.configs import get_config
from train.data import load_dataset, parse_crop
from train.data.crops import draw_numbers
from train.experiment import prepare_experiment
from train.fit import fit, resume_run
from train.loaders import make_loader
from train.warm_start import create_model, take_layers
from zoo.layers import Classifier, Conv, make_head
from zoo.preprocess import resize_center_crop
from zoo.registry import registered
from zoo.spec import ModelSpec, Preprocess

CLASSES = ("n01440764", "n01443537", "n01484850")
FAMILIES = (
    "imagenet_alexnet",
    "imagenet_zfnet",
    "imagenet_vgg11",
    "imagenet_googlenet",
    "imagenet_googlenet_quick",
    "imagenet_msra_a",
    "imagenet_resnet50",
    "imagenet_resnet50_v1",
)


class Tiny(nn.Module):
    """One or two convolutions on RGB."""

    deep: bool

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(Conv(4, 3, stride=2, name="conv1_1")(images))
        if self.deep:
            x = nn.relu(Conv(4, 3, name="conv1_2")(x))
        return {"pool": x.mean((1, 2))}


def build_tiny(*, num_classes, deep=False):
    return Classifier(Tiny(deep), make_head(num_classes))


@pytest.fixture(autouse=True)
def tiny_networks():
    """Registers two networks that a step of takes no time."""
    pre = Preprocess(16, 3, mean=(0.5,) * 3, std=(0.25,) * 3, resize=20)
    specs = [
        ModelSpec(name, "classification", build, "none", 1000, pre, 0, 0, lambda _: ())
        for name, build in (
            ("tiny", build_tiny),
            ("tiny_deep", partial(build_tiny, deep=True)),
        )
    ]
    with registered(*specs):
        yield


def photo(seed, mode="RGB", kind="jpeg"):
    """A file of an image of its own size."""
    rng = np.random.default_rng(seed)
    width, height = rng.integers(12, 60, 2)
    pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """train/ and val/ with a folder a class; one image is gray, one CMYK, one PNG."""
    root = tmp_path_factory.mktemp("imagenet")
    odd = {0: ("L", "jpeg"), 5: ("CMYK", "jpeg"), 10: ("RGB", "png")}
    for split, count in (("train", 4), ("val", 3)):
        for i in range(3 * count):
            path = root / split / CLASSES[i % 3] / f"{CLASSES[i % 3]}_{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photo(i, *odd.get(i, ("RGB", "jpeg"))))
    return root


def as_tar(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    out.seek(0)
    return out


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """TFDS's imagenet2012, prepared by its own builder from archives of few images."""
    builder = tfds.builder_cls("imagenet2012")

    def split_generators(self, _):
        train = (
            (f"{c}.tar", as_tar({f"{c}_{i}.JPEG": photo(i) for i in range(4)}))
            for c in CLASSES
        )
        names = [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(7)]
        images = zip(names, (io.BytesIO(photo(i, "L")) for i in range(7)), strict=True)
        labels = dict.fromkeys(names, CLASSES[1])
        return {
            "train": self._generate_examples(train),
            "validation": self._generate_examples(images, validation_labels=labels),
        }

    path = tmp_path_factory.mktemp("tfds")
    # Without this it looks for hashes by way of a package that TFDS does not depend on.
    builder.url_infos = None
    said = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
    ):
        patch.setattr(builder, "_split_generators", split_generators)
        builder(data_dir=path, file_format="array_record").download_and_prepare()
    del builder.url_infos
    return path


def shrink(name, folder, **changes):
    """A recipe as it is, but for its network, its set and its length."""
    config = get_config(name)
    data = dataclasses.replace(
        config.data,
        dataset=f"imagefolder:{folder}",
        batch_size=4,
        eval_batch_size=4,
        workers=0,
    )
    changes = {"steps": 2, **changes}
    return dataclasses.replace(
        config, model=ModelConfig("tiny"), data=data, log_every=1, **changes
    )


# Data


def test_training_cuts_anywhere_and_evaluation_the_center(folder):
    experiment = prepare_experiment(shrink("imagenet_resnet50", folder))
    config, pre = experiment.config, experiment.card.preprocess
    source = load_dataset(config.data.dataset, config.data.eval_split, color="rgb")
    assert source.split == "val"
    assert source.class_names == CLASSES
    assert {source.image(i).shape[-1] for i in range(9)} == {3}
    for i in range(9):
        expected = resize_center_crop(source.image(i), pre)
        np.testing.assert_array_equal(experiment.eval_source.image(i), expected)
    loader = make_loader(config.data, experiment.train_source, pre, experiment.mesh, 0)
    batch = next(loader.stream)
    loader.stream.close()
    for image, index in zip(batch["image"], batch["index"], strict=True):
        crop = parse_crop("area:0.08:1", pre)
        raw = experiment.train_source.source.image(index)
        expected = crop(draw_numbers(0, 0, int(index)), raw, pre)
        np.testing.assert_array_equal(image, expected)
        assert (image != resize_center_crop(raw, pre)).any()


@pytest.mark.parametrize("name", FAMILIES)
def test_each_recipe_trains_on_an_image_folder(name, folder, tmp_path):
    config = shrink(name, folder)
    result = fit(config, tmp_path / "run", quiet=True)
    assert result.finished
    assert result.experiment.card.class_names == CLASSES
    assert result.metrics["count"] == 9
    rows = [row for row in read_rows(tmp_path / "run") if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)
    params = flat(result.state.params)
    before = flat(result.experiment.variables["params"])
    assert all((params[path] != before[path]).any() for path in params)
    if config.optim.filter_rms:
        kernel = params["backbone/conv1_1/kernel"]
        assert np.sqrt(np.square(kernel).mean((0, 1, 2))).max() < 0.1001
    assert (result.state.ema is None) == (config.optim.ema_decay is None)


def test_a_recipe_trains_on_imagenet2012(prepared, tmp_path):
    config = shrink("imagenet_resnet50", "")
    data = dataclasses.replace(
        config.data, dataset="imagenet2012", data_dir=str(prepared), batch_size=4
    )
    config = dataclasses.replace(config, data=data)
    result = fit(config, tmp_path / "run", quiet=True)
    assert len(result.experiment.train_source) == 12
    assert result.metrics["count"] == 7
    assert result.experiment.card.num_classes == 1000
    assert result.experiment.card.class_names[:3] == CLASSES
    assert result.experiment.train_source.labels.tolist().count(2) == 4
    assert set(result.experiment.eval_source.labels.tolist()) == {1}


# Going on


def test_a_run_with_random_crops_goes_on_to_the_bit(folder, tmp_path):
    config = shrink("imagenet_resnet50", folder, steps=0, epochs=2)
    fit(config, tmp_path / "whole", quiet=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    result = resume_run(tmp_path / "again", step=3)
    assert int(result.state.step) == 6
    assert_same_state(tmp_path / "again", tmp_path / "whole", 6)
    assert read_rows(tmp_path / "again") == read_rows(tmp_path / "whole")


def test_a_deep_network_starts_from_layers_of_a_shallow_one(folder, tmp_path):
    shallow = fit(shrink("imagenet_vgg11", folder), tmp_path / "run", quiet=True)
    config = shrink("imagenet_vgg16", folder)
    layers = ("backbone/conv1_1/**", "head/**")
    model = ModelConfig("tiny_deep", weights=str(tmp_path / "run"), layers=layers)
    config = dataclasses.replace(config, model=model)
    _, variables, card = create_model(config, CLASSES)
    _, fresh = zoo.create("tiny_deep", num_classes=3, key=jax.random.key(0))
    ours, theirs = flat(variables["params"]), flat(shallow.state.params)
    for path, leaf in flat(fresh["params"]).items():
        expected = leaf if "conv1_2" in path else theirs[path]
        np.testing.assert_array_equal(ours[path], expected, err_msg=path)
    assert (card.model, card.num_classes) == ("tiny_deep", 3)

    for broken, message in (
        ({"weights": None}, r"model\.layers=.* give --from RUN, or --model\.layers w"),
        ({"layers": ("backbone/conv9/**",)}, "conv9.* matches no parameter"),
        ({"layers": ("backbone/conv1_2/**",)}, "not filled: params/backbone/conv1_2"),
    ):
        other = dataclasses.replace(config, model=dataclasses.replace(model, **broken))
        with pytest.raises(ValueError, match=message):
            create_model(other, CLASSES)
    with pytest.raises(ValueError, match="shape in the target"):
        take_layers(
            {"params": {"a": np.zeros(2)}}, {"params": {"a": np.zeros(3)}}, ("a",)
        )


# A few machines


ONE_OF_TWO = """
import sys
from pathlib import Path
import jax
file, folder, port, index = sys.argv[1:]
jax.config.update("jax_cpu_enable_async_dispatch", False)
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index))
from train.config import load_config
from train.fit import fit
fit(load_config(Path(file)), folder, quiet=True)
"""


@pytest.mark.apart
def test_two_processes_take_the_steps_of_one_with_random_crops(tmp_path):
    images = write_images(tmp_path / "images", {"train": 9, "test": 5})
    config = make_config(images, epochs=1, crop="area:0.3:1", augment=("flip",))
    fit(config, tmp_path / "alone", quiet=True)
    file = to_file(config, tmp_path / "config.json")
    # Once more where XLA gave up waiting for one of its own threads.
    for attempt in ("1", "2"):
        run_dir = tmp_path / attempt
        arguments = (str(file), str(run_dir), str(free_port()))
        codes, output = run_together(
            [[sys.executable, "-c", ONE_OF_TWO, *arguments, i] for i in "01"],
            2 * [environment(tmp_path / "cache")],
        )
        if codes is not None and not any(code < 0 for code in codes):
            break
    assert codes == [0, 0], output
    rows = zip(read_rows(run_dir), read_rows(tmp_path / "alone"), strict=True)
    for row, expected in rows:
        assert row.pop("kind") == expected.pop("kind")
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-5)
    ours, theirs = read_arrays(run_dir, 3), read_arrays(tmp_path / "alone", 3)
    for path, leaf in theirs.items():
        np.testing.assert_allclose(ours[path], leaf, atol=1e-5, err_msg=path)
