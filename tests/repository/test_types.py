"""The public door has types that a checker of a user's program accepts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import jax
import jax.numpy as jnp
import numpy as np

import zoo

version: str = zoo.__version__
names: list[str] = zoo.list_models("*resnet*")
text: str = zoo.describe("cifar_resnet20")
model, variables = zoo.create("cifar_resnet20", num_classes=10, key=jax.random.key(0))
model, variables, card = zoo.create_with_card("cifar_resnet20", weights="cifar10")
images = jnp.zeros((8, 32, 32, 3))
logits = model.apply(variables, images)
found: dict[str, jax.Array] = zoo.features(model, variables, images, ["stage*", "pool"])
shapes: dict[str, tuple[int, ...]] = zoo.list_endpoints("resnet50", names="stage*")
strides: list[int] = [level.stride for level in zoo.list_pyramid("resnet50")]
photos = np.zeros((1, 40, 30, 3), np.uint8)
classes = zoo.make_classifier(model, card.preprocess, top=5)(variables, photos)
print(card.class_names[int(classes.classes[0, 0])], float(classes.scores[0, 0]))
boxes: zoo.Detections = zoo.make_detector(model)(variables, photos)
masks: zoo.Segmentation = zoo.make_segmenter(zoo.build("unet_small"))(variables, photos)
found_in: zoo.Prediction = zoo.predict("lenet5", "photo.png", weights="digits")
print(found_in, found_in.save("found.png"))
predict: zoo.Predictor = zoo.make_predictor("ssd96_small", weights="digits_canvas")
several: list[zoo.Prediction] = predict(["a.png", "b.png"])
lists = zoo.make_classifier(model, card.preprocess)(variables, [photos[0], photos[0]])
artifact: bytes = zoo.export("resnet50", variables, batch="b")
maps: jax.Array = zoo.explain.deconvnet(model, variables, images, "stage3")
trained, frozen = zoo.transfer.split(variables["params"], ["backbone/**"])
certificate = zoo.verify.verify("lenet5")
"""


@pytest.mark.apart
def test_a_program_with_types(tmp_path):
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert found.returncode == 0, found.stdout
    # A name that the door does not have is found, too.
    file.write_text("import zoo\nzoo.creat('lenet5')\n")
    found = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert 'Module has no attribute "creat"' in found.stdout
