"""A public network reaches its published accuracy with our evaluation command.

Needs torch and, in the folder that ZOO_TEST_DATA names, `resnet20-12fca82f.th` and
`cifar10-test.zip` (CIFAR-10's test images as test/CLASS/NAME).
"""

import os
import re
from pathlib import Path

import pytest

DATA = Path(os.environ.get("ZOO_TEST_DATA") or "/nonexistent")
WEIGHTS, IMAGES = DATA / "resnet20-12fca82f.th", DATA / "cifar10-test.zip"


@pytest.mark.skipif(not WEIGHTS.exists(), reason="ZOO_TEST_DATA has no public weights")
def test_public_resnet20_reaches_its_published_accuracy(capsys):
    pytest.importorskip("torch")
    from train.cli import main

    main(
        [
            "evaluate",
            *("--model", "cifar_resnet20"),
            *("--weights", str(WEIGHTS)),
            *("--dataset", f"imagefolder:{IMAGES}"),
        ]
    )
    out = capsys.readouterr().out
    correct, count = map(int, re.search(r"\((\d+) of (\d+)\)", out).groups())
    assert count == 10_000
    # 91.73 %; two images may fall to the other side of a rounding error.
    assert abs(correct - 9_173) <= 2
