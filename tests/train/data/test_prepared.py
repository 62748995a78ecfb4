"""Digits, CIFAR and TFDS's data sets, prepared and read without TensorFlow."""

import http.server
import importlib.util
import io
import multiprocessing
import pathlib
import pickle
import tarfile
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from train.data import load_dataset
from train.data.formats import cifar, digits
from train.data.formats import tfds as tfds_format
from train.data.source import UnknownSplit


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    load_dataset("digits", "train", data_dir=path)
    return path


def test_digits_are_scikit_learns(data_dir):
    found = {}
    for split, n in (("train", 1433), ("test", 364)):
        source = load_dataset("digits", split, data_dir=data_dir)
        assert len(source) == n
        assert source.class_names == tuple("0123456789")
        found[split] = [
            (e["image"].tobytes(), int(e["label"]))
            for e in map(source.__getitem__, range(n))
        ]
        assert [label for _, label in found[split]] == source.labels.tolist()
        assert source[0]["image"].shape == (8, 8, 1)
        assert source.provenance(5) == f"digits {split} #5"
    raw = load_digits()
    images = np.round(raw.images / 16 * 255).astype(np.uint8)
    rank = dict.fromkeys(range(10), 0)
    expected = {"train": [], "test": []}
    for image, label in zip(images, raw.target.tolist(), strict=True):
        split = "test" if rank[label] % 5 == 0 else "train"
        expected[split].append((image.tobytes(), label))
        rank[label] += 1
    assert images.max() == 255
    for split in expected:
        assert sorted(found[split]) == sorted(expected[split])


def test_digits_choices_color_and_pickling(data_dir):
    source = load_dataset(
        "digits",
        "train",
        data_dir=data_dir,
        classes=("7", "1"),
        per_class=4,
        color="rgb",
    )
    assert source.labels.tolist().count(0) == 4
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[3]["image"], source[3]["image"])
    assert source[3]["image"].shape == (8, 8, 3)
    tenth = load_dataset("digits", "train[:10%]", data_dir=data_dir)
    assert len(tenth) == 143
    with pytest.raises(ValueError, match=r"'val'.*train.*test"):
        load_dataset("digits", "val", data_dir=data_dir)
    with pytest.raises(IndexError, match="143 examples, no #143"):
        tenth[143]


def _open(path, barrier, answers):
    barrier.wait()
    answers.put(len(load_dataset("digits", "test", data_dir=path)))


def test_each_part_of_a_split_may_have_any_usual_name(data_dir):
    def count(split):
        return len(load_dataset("digits", split, data_dir=data_dir))

    assert count("train+testing") == count("train+test") == count("all")
    assert count("testing[:50%]") == count("test[:50%]")
    assert count("all[:50%]") == count("train[:50%]+test[:50%]")
    assert count("training[:10%]+testing[:50%]") == count("train[:10%]+test[:50%]")
    with pytest.raises(ValueError, match=r"digits: split 'train\+training' .*twice"):
        count("train+training")
    with pytest.raises(UnknownSplit, match="digits has no split 'val'; it has train"):
        count("train+val")


@pytest.mark.apart
def test_two_processes_prepare_at_once_beside_an_interrupted_one(tmp_path):
    left_over = tmp_path / "digits" / "incomplete.ABCDEF_1.0.0"
    left_over.mkdir(parents=True)
    (left_over / "digits-train.array_record-00000-of-00001").write_bytes(b"half")
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=_open, args=(tmp_path, barrier, answers))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    assert [answers.get(timeout=60) for _ in processes] == [364, 364]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def test_the_slower_of_two_preparations_uses_the_faster_ones(tmp_path, monkeypatch):
    split_generators = digits.Digits._split_generators

    def overtaken(self, dl_manager):
        monkeypatch.setattr(digits.Digits, "_split_generators", split_generators)
        load_dataset("digits", "train", data_dir=tmp_path)
        return split_generators(self, dl_manager)

    monkeypatch.setattr(digits.Digits, "_split_generators", overtaken)
    assert len(load_dataset("digits", "train", data_dir=tmp_path)) == 1433


def test_preparing_digits_says_nothing(tmp_path, capfd):
    load_dataset("digits", "train", data_dir=tmp_path)
    assert capfd.readouterr() == ("", "")


def test_digits_without_scikit_learn(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'canon-zoo\[train\]'"):
        load_dataset("digits", "train", data_dir=tmp_path)
    assert not (tmp_path / "digits" / "1.0.0").exists()


# CIFAR


def cifar_archive(path, builder, n=3, **broken):
    """Writes a small archive in the publisher's form; returns its images by split."""
    rng = np.random.default_rng(0)
    images, files = {}, {}
    for split, names in builder.FILES.items():
        rows = rng.integers(0, 256, (n * len(names), builder.LABELS + 3072), np.uint8)
        rows[:, : builder.LABELS] %= 7
        images[split] = rows
        for name, part in zip(names, np.split(rows, len(names)), strict=True):
            files[name] = part.tobytes()
    names = [f"class{i}" for i in range(builder.CLASSES)]
    files[builder.NAMES] = ("\n".join(names) + "\n\n").encode()
    files |= broken.get("files", {})
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            if content is not None:
                member = tarfile.TarInfo(f"cifar-batches-bin/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return images


def expect(monkeypatch, builder, path, url=None):
    """Makes the builder expect this archive instead of the publisher's."""
    url = url or builder.URL
    monkeypatch.setattr(builder, "URL", url)
    info = tfds.download.checksums.compute_url_info(path)
    monkeypatch.setattr(builder, "url_infos", {url: info})


def rows_of(source):
    return sorted(
        bytes([e["label"]]) + e["image"].transpose(2, 0, 1).tobytes()
        for e in map(source.__getitem__, range(len(source)))
    )


@pytest.mark.parametrize(
    ("name", "builder"),
    [("cifar10", cifar.Cifar10Binary), ("cifar100", cifar.Cifar100Binary)],
)
def test_cifar_from_an_archive_on_disk(tmp_path, monkeypatch, name, builder):
    path = tmp_path / builder.ARCHIVE
    images = cifar_archive(path, builder)
    expect(monkeypatch, builder, path)
    for split in ("train", "test"):
        source = load_dataset(name, split, data_dir=tmp_path)
        rows = images[split][:, builder.LABELS - 1 :]  # the class, not the superclass
        assert rows_of(source) == sorted(row.tobytes() for row in rows)
        assert source.class_names[:2] == ("class0", "class1")
        assert len(source.class_names) == builder.CLASSES


def test_cifar_is_downloaded_without_tensorflow(tmp_path, monkeypatch, capfd):
    builder, served = cifar.Cifar10Binary, tmp_path / "served"
    served.mkdir()
    images = cifar_archive(served / builder.ARCHIVE, builder)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=served)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/{builder.ARCHIVE}"
            expect(monkeypatch, builder, served / builder.ARCHIVE, url)
            source = load_dataset("cifar10", "test", data_dir=tmp_path / "data")
        finally:
            server.shutdown()
    assert rows_of(source) == sorted(row.tobytes() for row in images["test"])


def test_the_publishers_hashes_are_those_tfds_knows():
    folder = pathlib.Path(tfds.__file__).parent / "url_checksums"
    for builder in (cifar.Cifar10Binary, cifar.Cifar100Binary):
        file = folder / builder.name.replace("_binary", ".txt")
        known = tfds.download.checksums.load_url_infos(file)
        assert builder.url_infos == {builder.URL: known[builder.URL]}


def test_another_archive_is_refused(tmp_path):
    cifar_archive(tmp_path / cifar.Cifar10Binary.ARCHIVE, cifar.Cifar10Binary)
    with pytest.raises(
        Exception, match=r"cifar-10-binary\.tar\.gz, has wrong checksum"
    ):
        load_dataset("cifar10", "train", data_dir=tmp_path)
    assert not (tmp_path / "cifar10_binary" / "1.0.0").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"test_batch.bin": bytes(3072)}, r"test_batch\.bin has 3072 bytes.* of 3073"),
        ({"test_batch.bin": b""}, r"test_batch\.bin has 0 bytes"),
        (
            {"test_batch.bin": bytes(3073) + b"\x0a" + bytes(3072)},
            r"test_batch\.bin: record 1 has label 10, expected 0 \.\. 9",
        ),
        ({"data_batch_3.bin": None}, r"tar\.gz lacks data_batch_3\.bin"),
        ({"batches.meta.txt": b"cat\ndog\n"}, r"batches\.meta\.txt has 2 class names"),
    ],
)
def test_wrong_records_name_their_file(tmp_path, monkeypatch, files, message):
    builder = cifar.Cifar10Binary
    path = tmp_path / builder.ARCHIVE
    cifar_archive(path, builder, files=files)
    expect(monkeypatch, builder, path)
    with pytest.raises(ValueError, match=message):
        load_dataset("cifar10", "train", data_dir=tmp_path)


def test_without_a_network_the_error_says_what_to_do(tmp_path, monkeypatch):
    url = "http://127.0.0.1:9/x.tar.gz"  # nobody listens there
    monkeypatch.setattr(cifar.Cifar10Binary, "URL", url)
    # TFDS tries for three minutes.
    monkeypatch.setattr(tfds.core.download.downloader, "MAX_RETRIES", 0)
    with pytest.raises(OSError, match=r"put cifar-10-binary\.tar\.gz into a folder"):
        load_dataset("cifar10", "train", data_dir=tmp_path)


# TFDS's own


def encoded(value, shape=(28, 28)):
    file = io.BytesIO()
    Image.fromarray(np.full(shape, value, np.uint8)).save(file, "png")
    return file.getvalue()


@pytest.fixture
def mock_mnist(tmp_path):
    """MNIST as if prepared, with three images, the last of which has no label."""
    tfds.builder("mnist", data_dir=tmp_path).info.write_to_directory(
        _made(tmp_path / "mnist" / "3.0.1")
    )
    records = [{"image": encoded(v), "label": v} for v in (3, 9)]
    records.append({"image": encoded(0), "label": -1})

    def as_data_source(self, split, decoders=None):
        if split != "test":
            raise ValueError(f"Unknown split {split!r}.")
        return records

    with tfds.testing.mock_data(as_data_source_fn=as_data_source, data_dir=tmp_path):
        yield tmp_path


def _made(path):
    path.mkdir(parents=True)
    return path


def test_a_data_set_of_tfds(mock_mnist):
    source = load_dataset("mnist", "test", data_dir=mock_mnist)
    assert len(source) == 3
    assert source.class_names == tuple("0123456789")
    assert source[1]["image"].shape == (28, 28, 1)
    assert int(source[1]["label"]) == 9
    # TFDS marks what has no label by -1, as in the test split of imagenet2012.
    with pytest.raises(ValueError, match=r"mnist test #2: label -1 is not in 0 \.\. 9"):
        source[2]
    with pytest.raises(ValueError, match=r"mnist test #2: label -1 is not in 0 \.\. 9"):
        source.labels  # noqa: B018


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="needs no TensorFlow"
)
@pytest.mark.parametrize("name", ["mnist", "imagenet2012", "coco/2017"])
def test_unprepared_without_tensorflow_names_the_extra(tmp_path, name, capfd):
    message = rf"{name} is not prepared in .*'canon-zoo\[tfds-prepare\]'"
    with pytest.raises(ModuleNotFoundError, match=message):
        load_dataset(name, "train", data_dir=tmp_path)
    assert capfd.readouterr().out == ""


def test_unknown_names_are_met_with_near_ones(tmp_path):
    with pytest.raises(ValueError, match=r"unknown data set 'mnits'.*'mnist'"):
        load_dataset("mnits", "train", data_dir=tmp_path)
    with pytest.raises(ValueError, match=r"unknown data set 'digit'.*'digits'"):
        load_dataset("digit", "train", data_dir=tmp_path)
    with pytest.raises(ValueError, match="imagefolder:PATH"):
        load_dataset("imagefoldr", "train", data_dir=tmp_path)


def test_a_set_without_image_and_label_is_refused():
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), "caption": tfds.features.Text()}
    )
    with pytest.raises(ValueError, match=r"cap: .* image \(Image\), caption \(Text\)"):
        tfds_format.find_kind("cap", features, None)


def test_prepared_in_a_format_without_random_access(data_dir, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise NotImplementedError

    monkeypatch.setattr(digits.Digits, "as_data_source", refuse)
    with pytest.raises(ValueError, match=r"digits was prepared as .* another data_dir"):
        load_dataset("digits", "train", data_dir=data_dir)
