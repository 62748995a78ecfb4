"""The page of what a network sees, and the command that writes it."""

import re

import numpy as np
import pytest
from tiny_runs import run_command, write_images

import zoo
from train.data import array_source, fit_source
from train.figures.maps import draw_classes, draw_grid, draw_heat, draw_projection
from train.visualize import Network, write_visualization
from zoo.figures.pictures import to_pil

CLASSES = ("ring", "dot")


def make_network(name="lenet5_modern", **options):
    model, variables, card = zoo.create_with_card(name, **options)
    return Network(model, variables, card)


def make_source(network, count=12):
    height, width, channels = network.card.preprocess.shape
    images = np.random.default_rng(0).integers(
        0, 256, (count, height, width, channels), np.uint8
    )
    labels = np.arange(count) % 2
    source = array_source(images, labels, CLASSES, name="noise", split="test")
    return fit_source(source, network.card.preprocess)


def test_a_page_shows_every_part_and_needs_nothing_else(tmp_path):
    network = make_network(num_classes=2)
    path = write_visualization(
        network,
        make_source(network),
        tmp_path / "deeper" / "page.html",
        title="What <it> sees",
        layers=["conv1", "conv2"],
        channels=3,
        quiet=True,
    )
    page = path.read_text()
    assert "What &lt;it&gt; sees" in page
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings == [
        "Filters of the first layer",
        "Layer conv1",
        "Layer conv2",
        "Why the worst mistakes",
        "What happens when a part is hidden",
    ]
    assert page.count("<h2>Layer conv1") == 1
    part = page.split("<h2>Layer conv1</h2>")[1].split("<h2>")[0]
    assert len(re.findall(r"<b>|channel \d+<small>", part)) == 3
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "script" not in page.lower().replace("description", "")


@pytest.mark.parametrize(
    ("name", "layers", "heading", "score"),
    [
        (
            "ssd96_small",
            ["stage5"],
            "Why this box is what it is",
            r"logits at \d",
        ),
        pytest.param(
            *("yolo96_small", [], "Why this box is what it is", r"classes at \d+, \d"),
            marks=pytest.mark.apart,
        ),
        pytest.param(
            *(
                "faster_rcnn_small",
                [],
                "Why this box is what it is",
                r"logits at \d",
            ),
            marks=pytest.mark.apart,
        ),
        pytest.param(
            *("unet_small", [], "Why this pixel is what it is", r"logits at \d+, \d+"),
            marks=pytest.mark.apart,
        ),
        pytest.param("deepface_small", [], None, None, marks=pytest.mark.apart),
    ],
)
def test_a_page_of_other_networks(tmp_path, name, layers, heading, score):
    options = {"widths": (4,) * 5} if name == "ssd96_small" else {}
    network = make_network(name, **options)
    path = write_visualization(
        network,
        make_source(network, 3),
        tmp_path / "page.html",
        title="",
        layers=layers,
        channels=1,
        quiet=True,
    )
    page = path.read_text()
    headings = re.findall("<h2>(.*?)</h2>", page)
    if heading is None:
        assert headings[-1].startswith("Layer ")
        return
    assert headings[-1] == heading
    # Three images of several classes: the six best pairs of an image and a class.
    assert len(re.findall(score, page)) == 6


def test_bad_input(tmp_path):
    network = make_network(num_classes=2)
    source = make_source(network)
    options = dict(title="", quiet=True)
    with pytest.raises(ValueError, match=r"--layers.*'conv3'.*conv2"):
        write_visualization(network, source, tmp_path, layers=["conv3"], **options)
    with pytest.raises(ValueError, match="channels"):
        write_visualization(network, source, tmp_path, channels=0, **options)
    empty = fit_source(
        array_source(
            np.zeros((0, 28, 28, 1), np.uint8), np.zeros(0, int), CLASSES, name="none"
        ),
        network.card.preprocess,
    )
    with pytest.raises(ValueError, match=r"none.*no images"):
        write_visualization(network, empty, tmp_path, **options)
    assert not any(tmp_path.iterdir())


def test_the_command(tmp_path):
    images = write_images(tmp_path / "set", {"test": 3}, size=28)
    network = make_network(num_classes=3)
    weights = tmp_path / "net.safetensors"
    zoo.weights.save_safetensors(weights, network.variables, network.card)
    page = tmp_path / "page.html"
    code, out, err = run_command(
        *("visualize", "--model", "lenet5_modern", "--weights", str(weights)),
        *("--dataset", f"imagefolder:{images}", "--layers", "conv2"),
        *("--channels", "2", "--out", str(page)),
    )
    assert code == 0, err
    assert str(page) in out
    assert "<h2>Layer conv2</h2>" in page.read_text()
    more = write_images(tmp_path / "more", {"test": 1}, size=28, classes="abcd")
    code, _, err = run_command(
        *("visualize", "--model", "lenet5_modern", "--weights", str(weights)),
        *("--dataset", f"imagefolder:{more}", "--out", str(page)),
    )
    assert code == 1
    assert re.search("4 classes.* 3", err)


def test_the_command_says_what_is_missing():
    code, _, err = run_command("visualize", "--model", "lenet5_modern")
    assert code == 1
    assert "--weights" in err


def test_pictures():
    grid = draw_grid([to_pil(np.full((2, 4, 3), 200, np.uint8))] * 3, 8, 2)
    assert grid.size == (20, 20)
    assert np.array(grid)[4, 4].tolist() == [200] * 3
    assert np.array(grid)[0, 0].tolist() == [128] * 3  # Above a wide picture.
    assert np.array(grid)[16, 16].tolist() == [255] * 3  # No fourth one.
    projection = np.zeros((2, 2, 3))
    projection[0, 0, 2], projection[1, 1, 0] = 4, -2
    drawn = np.array(draw_projection(projection, bgr=True))
    assert drawn[0, 0].tolist() == [255, 128, 128]
    assert drawn[1, 1].tolist() == [128, 128, 64]
    heat = np.array(draw_heat(np.array([[0.0, 2.0]]), (4, 6), low=0, high=2))
    assert heat.shape == (4, 6, 3)
    assert heat[0, 0].sum() < 10 < heat[0, 5].sum()
    classes, colors = draw_classes(np.array([[4, 4, 7]]), (3, 6))
    assert [*colors] == [4, 7]
    assert np.array(classes)[0, 0].tolist() == [*bytes.fromhex(colors[4][1:])]
