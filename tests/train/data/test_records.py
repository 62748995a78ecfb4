"""TFDS's data sets with boxes and masks, as if they were prepared."""

import contextlib
import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from train.data import BadImage, load_dataset
from train.data.formats import tfds as tfds_format
from train.data.formats.voc import CLASSES

SIZE = (30, 40)  # height and width


def encoded(values):
    file = io.BytesIO()
    Image.fromarray(np.asarray(values, np.uint8)).save(file, "png")
    return file.getvalue()


PICTURE = encoded(np.zeros((*SIZE, 3)))


@contextlib.contextmanager
def prepared(name, data_dir, *examples):
    """Makes TFDS give these records of a data set, whose features are its own."""
    builder = tfds.builder(name, data_dir=data_dir)
    builder.data_path.mkdir(parents=True)
    builder.info.write_to_directory(builder.data_path)

    def as_data_source(self, split, decoders=None):
        return list(examples)

    with tfds.testing.mock_data(as_data_source_fn=as_data_source, data_dir=data_dir):
        yield


def share(x1, y1, x2, y2):
    """A box as TFDS keeps it."""
    height, width = SIZE
    return np.array([y1 / height, x1 / width, y2 / height, x2 / width], np.float32)


@pytest.mark.parametrize("name", ["voc", "voc/2012"])
def test_voc(tmp_path, name):
    objects = {
        "bbox": [share(1, 1, 1, 1), share(11, 6, 40, 30), share(7, 7, 6, 9)],
        "label": [np.int64(14), np.int64(0), np.int64(3)],
        "is_difficult": [np.bool_(False), np.bool_(True), np.bool_(False)],
        "is_truncated": [np.bool_(False)] * 3,
        "pose": [np.int64(0)] * 3,
    }
    empty = {key: [] for key in objects}
    wrong = objects | {"label": [np.int64(20)] * 3}
    with prepared(
        name,
        tmp_path,
        {"image": PICTURE, "objects": objects},
        {"image": PICTURE, "objects": empty},
        {"image": PICTURE, "objects": wrong},
    ):
        source = load_dataset(name, "train", data_dir=tmp_path)
    assert (source.task, source.class_names) == ("detection", CLASSES)
    # As those of VOC's own files: TFDS keeps pixels that are numbered from 1.
    assert source[0]["boxes"].tolist() == [[0, 0, 1, 1], [10, 5, 40, 30]]
    assert source[0]["classes"].tolist() == [14, 0]
    assert source[0]["difficult"].tolist() == [False, True]
    assert source[1]["boxes"].shape == (0, 4)
    assert {k: v.dtype.name for k, v in source[1].items()} == {
        "image": "uint8",
        "boxes": "float32",
        "classes": "int32",
        "difficult": "bool",
        "index": "int32",
    }
    assert source.provenance(1) == f"{name} train #1"
    with pytest.raises(
        ValueError, match=rf"{name} train #2 object #0: label 20 is not"
    ):
        source[2]


def test_lfw_is_of_people_by_their_names(tmp_path):
    names = [b"Ann_A", b"Bob_B", b"Ann_A", b"Cy_C"]
    examples = [{"image": PICTURE, "label": name} for name in names]
    with prepared("lfw", tmp_path, *examples):
        source = load_dataset("lfw", "train", data_dir=tmp_path)
    assert source.task == "verification"
    assert source.class_names == ("Ann_A", "Bob_B", "Cy_C")
    np.testing.assert_array_equal(source.people, [0, 1, 0, 2])
    np.testing.assert_array_equal(source.labels, source.people)
    assert source.landmarks(0) is None
    assert source.face_set().gallery.tolist() == [True, False, False, False]


def write_coco(data_dir):
    """Writes a set of three images as TFDS's own builder of COCO does.

    That one needs TensorFlow even to say which features it has.
    """
    f = tfds.features
    names = [f"thing{i}" for i in range(79)] + ["toothbrush"]

    with tfds.core.registered.skip_registration():

        class Coco(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.1.0")
            BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="2017", version=VERSION),)
            url_infos = None

            def _info(self):
                objects = {
                    "area": np.int64,
                    "bbox": f.BBoxFeature(),
                    "id": np.int64,
                    "is_crowd": np.bool_,
                    "label": f.ClassLabel(names=names),
                }
                features = {
                    "image": f.Image(),
                    "image/filename": f.Text(),
                    "image/id": np.int64,
                    "objects": f.Sequence(objects),
                }
                return tfds.core.DatasetInfo(
                    builder=self, features=f.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples()}

            def _generate_examples(self):
                boxes = [(1.5, 2.25, 11.75, 6), (0, 0, 40, 30)]
                for i in range(3):
                    objects = [
                        {
                            "area": 9,
                            "bbox": f.BBox(*share(*boxes[k])),
                            "id": k,
                            "is_crowd": k == 1,
                            "label": 79 - k,
                        }
                        for k in range(i)
                    ]
                    yield (
                        i,
                        {
                            "image": Image.new("RGB", (40, 30), (i, 0, 0)),
                            "image/filename": "x.jpg",
                            "image/id": i,
                            "objects": objects,
                        },
                    )

    builder = Coco(data_dir=data_dir, config="2017", file_format="array_record")
    builder.download_and_prepare()


def test_coco(tmp_path):
    write_coco(tmp_path)
    source = load_dataset("coco/2017", "train", data_dir=tmp_path)
    assert (source.task, len(source), len(source.class_names)) == ("detection", 3, 80)
    assert source.class_names[79] == "toothbrush"
    examples = {int(e["image"][0, 0, 0]): e for e in map(source.__getitem__, range(3))}
    assert examples[0]["boxes"].shape == (0, 4)
    both = examples[2]
    assert both["boxes"].tolist() == [[1.5, 2.25, 11.75, 6], [0, 0, 40, 30]]
    assert both["classes"].tolist() == [79, 78]
    assert both["difficult"].tolist() == [False, True]  # a crowd
    tenth = load_dataset("coco/2017:1.1.0", "train[:34%]", data_dir=tmp_path)
    assert len(tenth) == 1


def test_pets_have_labels_and_masks(tmp_path):
    mask = np.full(SIZE, 2)
    mask[3:9, 4:8], mask[0] = 1, 3
    record = {"image": PICTURE, "label": 3, "segmentation_mask": encoded(mask)}
    other = record | {"segmentation_mask": encoded(mask[:5])}
    with prepared("oxford_iiit_pet", tmp_path, record, other):
        labeled = load_dataset("oxford_iiit_pet", "train", data_dir=tmp_path)
        source = load_dataset(
            "oxford_iiit_pet", "train", data_dir=tmp_path, task="segmentation"
        )
        with pytest.raises(ValueError, match=r"for task='detection'; it has .*species"):
            load_dataset(
                "oxford_iiit_pet", "train", data_dir=tmp_path, task="detection"
            )
    assert (labeled.task, int(labeled[0]["label"])) == ("classification", 3)
    assert source.class_names == ("pet", "background", "border")
    np.testing.assert_array_equal(source[0]["mask"], mask - 1)
    with pytest.raises(
        BadImage, match=r"#1: the mask is 40 x 5 pixels, its image 40 x 30"
    ):
        source[1]


def test_cityscapes_has_19_classes_of_its_34(tmp_path):
    name = "cityscapes/semantic_segmentation"
    ids = np.zeros(SIZE)
    ids[0, :36] = [*range(34), 255, 7]
    record = {"image_left": PICTURE, "segmentation_label": encoded(ids)}
    with prepared(name, tmp_path, record):
        source = load_dataset(name, "train", data_dir=tmp_path)
    assert source.task == "segmentation"
    assert len(source.class_names) == 19
    mask = source[0]["mask"]
    found = dict(
        zip(ids[0, :36].astype(int).tolist(), mask[0, :36].tolist(), strict=True)
    )
    # The publisher's own table.
    expected = dict(
        zip(
            (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
            range(19),
            strict=True,
        )
    )
    assert {k: v for k, v in found.items() if v != 255} == expected
    assert mask[5, 5] == 255
    where = {name: i for i, name in enumerate(source.class_names)}
    assert (where["road"], where["traffic light"], where["sky"]) == (0, 6, 10)
    assert (where["person"], where["bicycle"]) == (11, 18)


def test_a_set_is_asked_what_it_is_for():
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(),
            "objects": tfds.features.Sequence({"bbox": tfds.features.BBoxFeature()}),
        }
    )
    message = (
        r"x: expected .* 'objects' with 'bbox' and 'label' .* objects \(Sequence\)"
    )
    with pytest.raises(ValueError, match=message):
        tfds_format.find_kind("x", features, None)
    with pytest.raises(ValueError, match="for task='segmentation'; it has"):
        tfds_format.find_kind("x", features, "segmentation")
