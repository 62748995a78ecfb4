"""The command line: canon-zoo COMMAND, one of `COMMANDS`.

`canon-zoo train` is a separate command line, defined in `train.cli`.
"""

import importlib.metadata
import os
import shutil
import sys
from json import dumps
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import tyro

import zoo
from zoo.compilation_cache import use_compilation_cache
from zoo.decode import list_images
from zoo.paths import unknown
from zoo.predictions import unused_path
from zoo.summary import describe_weights


def list_(pattern: tyro.conf.Positional[str] = "*", *, task: str | None = None) -> None:
    """Lists the models with their parameters, MACs and published weights.

    Args:
      pattern: Shell pattern, such as '*resnet*'.
      task: classification, detection, segmentation or verification; all if not given.
    """
    names = zoo.list_models(pattern, task=task)
    if not names:
        raise ValueError(f"no model matches {pattern!r}.")
    rows = [("model", "parameters", "MACs", "input", "weights")]
    for name in names:
        spec = zoo.get_spec(name)
        pre = spec.preprocess
        size = "x".join(map(str, pre.shape))
        known = (*spec.weights, *zoo.weights.list_trained(name))
        weights = ", ".join(w.name for w in known) or "-"
        rows.append((name, f"{spec.params:,}", f"{spec.macs:,}", size, weights))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for name, params, macs, size, weights in rows:
        print(
            f"{name:<{widths[0]}}  {params:>{widths[1]}}  {macs:>{widths[2]}}  "
            f"{size:>{widths[3]}}  {weights}"
        )


def describe(
    name: tyro.conf.Positional[str], *, num_classes: int | None = None
) -> None:
    """Describes a model: paper, layers, parameters, MACs, endpoints, weights.

    Args:
      name: Name of the model.
      num_classes: The paper's number if not given.
    """
    print(zoo.describe(name, num_classes=num_classes))


def weights(pattern: tyro.conf.Positional[str] = "*", *, fetch: bool = False) -> None:
    """Lists weights: source, license, accuracy, input, URL, hash, file.

    Args:
      pattern: Shell pattern of models, such as 'resnet*'.
      fetch: Download the published weights that are not in the cache yet.
    """
    models = zoo.list_models(pattern)
    published = [(name, w) for name in models for w in zoo.get_spec(name).weights]
    carried = [(name, w) for name in models for w in zoo.weights.list_trained(name)]
    if not published and not carried:
        raise ValueError(f"no model that matches {pattern!r} has weights.")
    for name, one in carried:
        lines = describe_weights(name, one)
        print(f"{name} {lines[0]}", *lines[1:], sep="\n")
    for name, one in published:
        path = zoo.weights.fetch(one) if fetch else zoo.weights.cache_path(one)
        kept = "kept" if path.exists() else "will be kept"
        lines = [*describe_weights(name, one), f"  {kept} as {path}"]
        print(f"{name} {lines[0]}", *lines[1:], sep="\n")


def verify(
    name: tyro.conf.Positional[str],
    *,
    weights: str | None = None,
    training: Literal["float32", "float64"] | None = None,
) -> None:
    """Compares a network with its source at every endpoint; status 1 if they differ.

    Args:
      name: Name of the model.
      weights: As for convert; compared with torchvision's network if that is installed.
        If not given, deterministic weights are compared with a golden file.
      training: Compare the loss, gradients and running statistics of a training step,
        computed in this type, instead of the endpoints.
    """
    certificate = zoo.verify.verify(name, weights, training=training)
    print(certificate)
    if not certificate.passed:
        sys.exit(1)


def predict(
    images: tyro.conf.Positional[tuple[str, ...]],
    *,
    model: str,
    weights: str | None = None,
    out: Path | None = None,
    json: bool = False,
    top: int = 5,
    score_threshold: float | None = None,
) -> None:
    """Predicts the classes, objects, masks or face descriptors of images.

    Args:
      images: Files, folders, and patterns in quotes such as 'photos/*.jpg'.
      model: Name of a model, a run folder, or a weights file that names its model.
      weights: Weights of a model given by name, as for convert.
      out: Folder for pictures of the predictions; none are written if not given.
      json: Print one line of JSON for each image.
      top: Number of classes that a classifier names.
      score_threshold: Score below which boxes are left out, 0 to 1; 0.3 or the
        network's own, whichever is higher, if not given.
    """
    if not images:
        raise ValueError("name at least one image, folder or pattern.")
    paths = list_images(images)
    predict = zoo.make_predictor(
        model, weights=weights, top=top, score_threshold=score_threshold
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    # Two folders may have a file of the same name, and none of the images is replaced.
    failed, taken = 0, {path.resolve() for path in paths}
    for path in paths:
        try:
            found = predict(path)
        except (ValueError, OSError) as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
            continue
        said = dumps(found.to_json()) if json else str(found)
        if out is not None:
            file = found.save(unused_path(out / f"{path.stem}.png", taken))
            said += "" if json else f"  ({file})"
        print(said)
    if failed:
        sys.exit(f"error: {failed} of {len(paths)} images could not be read.")


def convert(
    name: tyro.conf.Positional[str],
    source: tyro.conf.Positional[str],
    target: tyro.conf.Positional[Path],
    *,
    layout: Literal["zoo", "torch"] = "zoo",
) -> None:
    """Writes weights into one safetensors file, with the zoo's or PyTorch's names.

    Args:
      name: Name of the model.
      source: Safetensors or torch file, run folder, checkpoint, or a published name.
      target: File to write; ends in .safetensors.
      layout: zoo or torch.
    """
    zoo.weights.convert(name, source, target, layout=layout)
    print(f"wrote {target}")


def export(
    name: tyro.conf.Positional[str],
    target: tyro.conf.Positional[Path],
    *,
    weights: str | None = None,
    preprocess: bool = False,
    batch: str = "b",
    num_classes: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    format: Literal["stablehlo", "onnx"] = "stablehlo",
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu"),
) -> None:
    """Exports a model with its weights for inference, as StableHLO or ONNX.

    Args:
      name: Name of the model.
      target: File to write.
      weights: As for convert; initialized at random if not given.
      preprocess: Include the preprocessing, for uint8 images of the network's size.
      batch: Batch size: a number, or a name such as b for any number.
      num_classes: Number of classes; the weights' if not given.
      dtype: Type of the computation.
      format: stablehlo, or onnx, which needs jax2onnx.
      platforms: Platforms to export for, of cpu, cuda, rocm and tpu; ONNX runs on all.
    """
    _, variables, card = zoo.create_with_card(
        name, weights=weights, num_classes=num_classes
    )
    artifact = zoo.export(
        name,
        variables,
        batch=batch,
        preprocess=card.preprocess if preprocess else None,
        num_classes=card.num_classes,
        format=format,
        platforms=platforms,
        **{**card.overrides, "dtype": dtype},
    )
    target.write_bytes(artifact)
    reader = {"stablehlo": "jax.export.deserialize", "onnx": "onnxruntime"}[format]
    print(f"wrote {target}; {reader} reads its bytes")


def doctor() -> None:
    """Reports what jax runs on, and warns if an accelerator is idle."""
    rows = {"python": sys.version.split()[0]}
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"):
        rows[package] = importlib.metadata.version(package)
    devices = jax.devices()
    for i, device in enumerate(devices):
        limit = (device.memory_stats() or {}).get("bytes_limit")
        memory = f", {limit / 2**30:.1f} GiB" if limit else ""
        rows[f"device {i}"] = f"{device.device_kind} ({device.platform}){memory}"
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    rows["host"] = f"{os.cpu_count()} cores, {host / 2**30:.1f} GiB"
    rows["processes"] = str(jax.process_count())
    rows["precision"] = _precision()
    rows["compilation cache"] = jax.config.jax_compilation_cache_dir or "none set"
    rows["huge pages"] = _huge_pages()
    for name, value in rows.items():
        print(f"{name:<19}{value}")
    idle = idle_accelerator()
    if idle and devices[0].platform == "cpu":
        print(
            f"\nWARNING: {idle}, but jax runs on the CPU. Install jax for it, such as "
            "pip install 'jax[cuda13]' or 'jax[tpu]', and look at JAX_PLATFORMS."
        )


def _precision() -> str:
    # A matrix product that reduced precision on tensor cores cannot compute exactly.
    x = jnp.full((128, 128), 1 + 2**-12, jnp.float32)
    error = float(jnp.abs(x @ x / 128 - (1 + 2**-12) ** 2).max())
    kind = "full float32" if error < 1e-6 else "reduced (TF32 or bfloat16)"
    setting = jax.config.jax_default_matmul_precision or "default"
    return f"float32 products are {kind}; jax_default_matmul_precision={setting}"


def _huge_pages() -> str:
    """Reports whether malloc asks for 2 MiB pages, with which a CPU trains faster."""
    policy = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    setting = os.environ.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb=" in setting:
        return f"GLIBC_TUNABLES={setting}"
    if not policy.is_file() or "[madvise]" not in policy.read_text():
        return "the system's choice"
    return "off; on a CPU GLIBC_TUNABLES=glibc.malloc.hugetlb=1 makes training faster"


def idle_accelerator() -> str | None:
    """Names the accelerator that this machine has, whether or not jax uses it."""
    dev = Path("/dev")
    if shutil.which("nvidia-smi") and any(dev.glob("nvidia[0-9]*")):
        return "an NVIDIA GPU is present"
    if any(dev.glob("accel[0-9]*")) or any(dev.glob("vfio/[0-9]*")):
        return "a TPU seems to be present"
    return None


COMMANDS = {
    "list": list_,
    "describe": describe,
    "weights": weights,
    "predict": predict,
    "verify": verify,
    "convert": convert,
    "export": export,
    "doctor": doctor,
}


def main(arguments: list[str]) -> None:
    """Runs one command."""
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help"):
        print("usage: canon-zoo COMMAND; each has --help\n")
        for command, function in COMMANDS.items():
            print(f"  {command:<10}{function.__doc__.splitlines()[0]}")
        print(f"  {'train':<10}Trains, resumes, evaluates and predicts.")
    elif name in COMMANDS:
        tyro.cli(COMMANDS[name], args=rest, prog=f"canon-zoo {name}")
    else:
        raise ValueError(unknown("command", name, COMMANDS))


def run(arguments: list[str]) -> None:
    """Runs one command, and exits with a message if it fails."""
    use_compilation_cache()
    try:
        main(arguments)
    # Errors that a user can fix become messages; anything else is a bug and is raised.
    except (ValueError, OSError, ImportError, NotImplementedError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    run(sys.argv[1:])
