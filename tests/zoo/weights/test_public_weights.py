"""A public network reaches its published accuracy with our evaluation command.

Needs torch and, in the folder that ZOO_TEST_DATA names, `resnet20-12fca82f.th` and
`cifar10-test.zip` (CIFAR-10's test images as test/CLASS/NAME).
"""

import os
import re
from pathlib import Path

import pytest
from tiny_runs import environment, run_python

DATA = Path(os.environ.get("ZOO_TEST_DATA") or "/nonexistent")
WEIGHTS, IMAGES = DATA / "resnet20-12fca82f.th", DATA / "cifar10-test.zip"


@pytest.mark.skipif(not WEIGHTS.exists(), reason="ZOO_TEST_DATA has no public weights")
@pytest.mark.parametrize(
    ("split", "right", "images"),
    [
        ("test[:20%]", 1_838, 2_000),
        # 91.73 %, as published.
        pytest.param("test", 9_173, 10_000, marks=pytest.mark.apart),
    ],
)
def test_public_resnet20_reaches_its_published_accuracy(tmp_path, split, right, images):
    pytest.importorskip("torch")
    # Compiled as users compile it, because it runs on thousands of images.
    done = run_python(
        *("-m", "train", "evaluate", "--model", "cifar_resnet20"),
        *("--weights", str(WEIGHTS), "--dataset", f"imagefolder:{IMAGES}"),
        *("--split", split),
        env=environment(tmp_path, XLA_FLAGS=""),
    )
    assert done.returncode == 0, done.stderr
    correct, count = map(int, re.search(r"\((\d+) of (\d+)\)", done.stdout).groups())
    assert count == images
    # Two images may fall to the other side of a rounding error.
    assert abs(correct - right) <= 2
