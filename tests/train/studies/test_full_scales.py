"""The studies' scales that the trainer runs, on small sets and with few steps."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from tiny_runs import write_images

from train.studies import STUDIES, run_study
from train.studies.detector_parts import BCCD

pytestmark = pytest.mark.apart

BOX = "<bndbox><xmin>5</xmin><ymin>9</ymin><xmax>60</xmax><ymax>90</ymax></bndbox>"
# Fields of the sizes to replace, by study.
TINY = {
    "degradation": dict(depths=(20,), steps=2),
    "residual_gradients": dict(depths=(20,), width=4, batch=4, steps=2, entries=1),
    "initialization": dict(
        draws=1,
        images=1,
        side=32,
        options={"dense": 8, "widths": (8, 8, 8, 8), "depths": (1, 1, 2)},
        steps=1,
        depth=3,
        dense_steps=1,
        networks=("relu22",),
        inits=("He",),
    ),
    "batch_norm": dict(steps=1, activations=("sigmoid",), factors=(5,)),
    "skips": dict(steps=1, variants=("U-Net without skips",), widths=(4, 8)),
    "detectors": dict(steps=1, batch_size=2, repeats=1, lowest={}, recipes=BCCD),
    "visualization": dict(
        weights="cifar10_20epochs",
        images=4,
        transforms=3,
        faces=2,
        draws=1,
        model="cifar_resnet20",
        ends=("stem", "stage3"),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images by class, VOC's layout, and images with masks."""
    root = tmp_path_factory.mktemp("sets")
    counts = {"train": 64, "test": 2, "validation": 2}
    write_images(root / "classes", counts, classes="ab", size=32, mode="RGB")
    rng, names = np.random.default_rng(0), ("a", "b")

    def write_noise(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(path)

    voc = root / "voc"
    for name in names:
        write_noise(voc / "JPEGImages" / f"{name}.jpg", (100, 120, 3))
        path = voc / "Annotations" / f"{name}.xml"
        path.parent.mkdir(exist_ok=True)
        size = "<size><width>120</width><height>100</height><depth>3</depth></size>"
        cell = f"<object><name>cell</name>{BOX}</object>"
        path.write_text(f"<annotation>{size}{cell}</annotation>")
    lists = voc / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split in ("trainval", "test"):
        (lists / f"{split}.txt").write_text("\n".join(names))
    for split in ("train", "test"):
        for i in range(4):
            place = root / "masks" / split
            write_noise(place / "images" / f"{i}.png", (360, 480, 3))
            stripes = np.repeat(np.arange(12, dtype=np.uint8), 40)
            (place / "masks").mkdir(exist_ok=True)
            mask = Image.fromarray(np.tile(stripes, (360, 1)))
            mask.save(place / "masks" / f"{i}.png")
    return root


@pytest.mark.parametrize("name", TINY)
def test_the_full_scale_trains_resumes_and_writes_its_page(name, folder, tmp_path):
    study = STUDIES[name]
    sizes = dataclasses.replace(study.scales["full"], **TINY[name])
    study = dataclasses.replace(study, scales={"full": sizes})
    kinds = {"detectors": "voc", "skips": "masks"}
    dataset = f"imagefolder:{folder / 'classes'}"
    if name in kinds:
        dataset = f"{kinds[name]}:{folder / kinds[name]}"
    report = run_study(study, tmp_path, scale="full", dataset=dataset)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["scale"] == "full"
    assert len(report.figure_paths()) == len(report.outcome.figures) > 0
    # A finished run is not trained again.
    written = {
        p: p.stat().st_mtime for p in tmp_path.rglob("checkpoints/*/_CHECKPOINT*")
    }
    assert bool(written) == (name != "visualization")
    run_study(study, tmp_path, scale="full", dataset=dataset)
    for path, time in written.items():
        assert path.stat().st_mtime == time
