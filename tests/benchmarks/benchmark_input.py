"""Measures the images per second that one core decodes and crops.

    python tests/benchmarks/benchmark_input.py [--rate IMAGES_A_SECOND]

Images are JPEGs of 500 x 375 pixels and about 110 kB, typical of ImageNet: noise with
the spectrum of a photograph. Each row is the shortest time of several rounds, in one
thread; the last column is the number of cores that keep up with --rate, by default
2,470 images per second, NVIDIA's published figure for training ResNet-50 in half
precision on an A100.
"""

import argparse
import io
import time

import numpy as np
from PIL import Image

from train.data import decode_image, parse_crop
from train.data.crops import draw_numbers
from zoo.spec import Preprocess

PREPROCESS = Preprocess(224, 3, mean=(0.5,) * 3, std=(0.25,) * 3, resize=256)
CROPS = (
    "center",
    "square:256",
    "scale_jitter:256:256",
    "scale_jitter:256:480",
    "area:0.08:1",
)


def make_jpeg(seed: int, height: int = 375, width: int = 500) -> bytes:
    """A photograph's worth of bytes: amplitudes fall with the frequency."""
    rng = np.random.default_rng(seed)
    y, x = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    fall = 1 / np.maximum(np.hypot(y, x), 1 / width)[..., None]
    noise = np.fft.fft2(rng.normal(size=(height, width, 3)), axes=(0, 1))
    image = np.fft.ifft2(noise * fall, axes=(0, 1)).real
    image = 128 + 50 * (image - image.mean()) / image.std()
    file = io.BytesIO()
    pil = Image.fromarray(image.clip(0, 255).astype(np.uint8))
    pil.save(file, "jpeg", quality=87)
    return file.getvalue()


def measure(function, files: list[bytes], rounds: int = 5) -> float:
    """Returns the seconds that a file takes, in the best of some rounds."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        for index, data in enumerate(files):
            function(index, data)
        seconds.append((time.perf_counter() - start) / len(files))
    return min(seconds)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rate", type=float, default=2470, help="images per second")
    rate = parser.parse_args().rate
    files = [make_jpeg(i) for i in range(40)]
    print(f"{np.mean([len(f) for f in files]) / 1000:.0f} kB a file")
    print(f"{'':24}{'ms':>8}{'images/s':>10}{f'cores for {rate:,.0f}/s':>20}")

    def show(name, function):
        seconds = measure(function, files)
        each = f"{1e3 * seconds:8.2f}{1 / seconds:10.0f}{rate * seconds:20.1f}"
        print(f"{name:24}{each}")

    show("decode", lambda _, data: decode_image(data, "", color="rgb"))
    for text in CROPS:
        crop = parse_crop(text, PREPROCESS)

        def read(index, data, crop=crop):
            image = decode_image(data, "", color="rgb")
            return crop(draw_numbers(0, 0, index), image, PREPROCESS)

        show(text, read)


if __name__ == "__main__":
    main()
