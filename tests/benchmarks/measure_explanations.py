"""Measures whether the maps of `zoo.explain` explain a trained network.

    python tests/benchmarks/measure_explanations.py RUN
    python tests/benchmarks/measure_explanations.py --model cifar_resnet20 \\
        --weights resnet20-12fca82f.th --dataset imagefolder:cifar10

Classifiers: the areas under the deletion and insertion curves, beside those of random
maps, for single pixels and squares of 4 x 4 pixels; the similarity of the maps to those
of the same network with randomized layers, from the last layer down; and the
completeness of integrated gradients. Segmentation networks: the share of a map's mass
within the mask of the object whose pixel is explained. Numbers go to explanations.json
beside this file; `--readme` writes the tables to README.md.
"""

import argparse
import json
import shlex
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import readme
from benchmark_rounds import machine, say, where

import zoo
from train.config import load_config
from train.data import fit_source, load_dataset
from zoo import explain
from zoo.explain.sanity import magnitude

OUT = Path(__file__).parent / "explanations.json"
STEPS = 32
CELL = 4  # pixels of squares, which are hidden and shown besides single pixels


def load(options):
    """Returns `(name of the run, model, variables, card, source)`."""
    name, weights, dataset, split = (
        options.model,
        options.weights,
        options.dataset,
        options.split,
    )
    if options.run:
        data = load_config(options.run / "config.json").data
        name = zoo.weights.read_checkpoint(options.run)[1].model
        weights, dataset = str(options.run), dataset or data.dataset
        split = split or data.eval_split
    model, variables, card = zoo.create_with_card(name, weights=weights)
    source = load_dataset(
        dataset,
        split or "test",
        color=card.preprocess.color,
        task=zoo.get_spec(name).task,
    )
    return name, model, variables, card, fit_source(source, card.preprocess)


def list_methods(model, variables, images, endpoint, layer):
    """Every method as a function of variables, classes and positions."""
    key = jax.random.key(0)

    def random(variables, classes, positions):
        return jax.random.normal(key, images.shape)

    def one(name, **options):
        method = getattr(explain, name)
        return lambda v, classes, positions: method(
            model, v, images, endpoint, classes, positions, **options
        )

    methods = {
        "random": random,
        "saliency": one("saliency"),
        "deconvnet": one("deconvnet"),
        "guided_backprop": one("guided_backprop"),
        "smooth_grad": one("smooth_grad", key=key, samples=16),
        "integrated_gradients": one("integrated_gradients", steps=STEPS),
        "grad_cam": lambda v, classes, positions: explain.grad_cam(
            model, v, images, layer, classes, positions
        ),
    }
    if not explain.count_rectifiers(model, variables, images):
        del methods["deconvnet"], methods["guided_backprop"]
    return methods


def measure_classifier(model, variables, images, layer):
    """Deletion, insertion, randomization and completeness of each method."""
    labels = np.asarray(jax.jit(model.apply)(variables, images).argmax(-1))
    methods = list_methods(model, variables, images, "logits", layer)
    rows, first = {}, {}
    for name, method in methods.items():
        maps = first[name] = method(variables, labels, None)
        row = rows[name] = {}
        for mode in ("deletion", "insertion"):
            for cell in (1, CELL):
                curve = explain.perturbation_curve(
                    model, variables, images, maps, labels, mode=mode, cell=cell
                )
                unit = "pixels" if cell == 1 else f"{cell} x {cell}"
                row[f"{mode}, {unit}"] = float(curve.mean())
        say(f"{name}: {row}")
    key = jax.random.key(1)
    steps = explain.randomize_layers(model, variables, images, key=key)
    steps = [*steps]
    shown = np.unique(np.linspace(0, len(steps) - 1, 5).round().astype(int))
    for name, method in methods.items():
        if name == "random":
            continue
        rows[name]["similarity"] = {
            steps[i][0]: float(
                explain.similarity(
                    first[name], method(steps[i][1], labels, None)
                ).mean()
            )
            for i in shown
        }
        say(f"{name}: {rows[name]['similarity']}")
    for count in (STEPS, 1024, 4096):
        maps = explain.integrated_gradients(
            model, variables, images[:4], "logits", labels[:4], steps=count
        )
        error = explain.completeness_error(
            model, variables, images[:4], "logits", maps, labels[:4]
        )
        rows["integrated_gradients"][f"completeness error, {count} steps"] = float(
            error.max()
        )
    return rows


def measure_masks(model, variables, images, masks, layer):
    """The part of each map's mass within the object, whose central pixel is taken."""
    classes, positions, objects = [], [], []
    for mask in masks:
        present = np.unique(mask[(mask != 255) & (mask != 0)])
        own = mask == (present[0] if len(present) else 0)
        rows, columns = np.nonzero(own)
        nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
        classes.append(int(mask[rows[nearest], columns[nearest]]))
        positions.append([rows[nearest], columns[nearest]])
        objects.append(own)
    classes, positions = np.array(classes), np.array(positions)
    objects = np.stack(objects)
    rows = {"share of the image": {"mass": float(objects.mean())}}
    methods = list_methods(model, variables, images, "logits", layer)
    for name, method in methods.items():
        maps = method(variables, classes, positions)
        mass = float(explain.mass_in_mask(maps, jnp.asarray(objects)).mean())
        # The same within as many pixels as the object has: the largest ones of the map.
        flat = np.asarray(magnitude(maps)).reshape(len(maps), -1)
        hits = []
        for values, own in zip(flat, objects.reshape(len(maps), -1), strict=True):
            largest = np.argsort(-values, kind="stable")[: own.sum()]
            hits.append(own[largest].mean())
        rows[name] = {"mass": mass, "of the largest pixels": float(np.mean(hits))}
        say(f"{name}: {rows[name]}")
    return rows


def render(found):
    """Makes a table for each network."""
    parts = []
    for name, each in found.items():
        rows = each["rows"]
        columns = [*dict.fromkeys(key for row in rows.values() for key in row)]
        steps = [
            f"randomized down to `{path}`"
            for path in next(
                (r["similarity"] for r in rows.values() if "similarity" in r), {}
            )
        ]
        plain = [c for c in columns if c != "similarity" and "error" not in c]
        header = ["method", *plain, *steps]
        command = each.get("arguments")
        lines = [
            f"`{name.replace(' on ', '` on `', 1)}`, {each['images']} images, Grad-CAM "
            f"of `{each['layer']}`"
            + (f", arguments `{shlex.join(command)}`:" if command else ":"),
            "",
            f"| {' | '.join(header)} |",
            f"| --- |{' ---: |' * (len(header) - 1)}",
        ]
        for method, row in rows.items():
            values = [row.get(column) for column in plain]
            values += [*row.get("similarity", {}).values()] or [None] * len(steps)
            cells = ["" if v is None else f"{v:.3f}" for v in values]
            lines.append(f"| {method.replace('_', ' ')} | {' | '.join(cells)} |")
        errors = [
            f"{value:.1e} ({key.removeprefix('completeness error, ')})"
            for key, value in rows.get("integrated_gradients", {}).items()
            if "completeness" in key
        ]
        if errors:
            lines += ["", f"Completeness error at most {', '.join(errors)}."]
        parts.append("\n".join(lines))
    places = dict.fromkeys(where(e["machine"], ("jax",)) for e in found.values())
    parts.append(
        f"On {'; '.join(places)}. `python tests/benchmarks/measure_explanations.py` "
        "reproduces them."
    )
    return "\n\n".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("run", nargs="?", type=Path, metavar="RUN", help="a run's folder")
    add("--model", help="model; needed without RUN")
    add("--weights", help="trained weights; needed without RUN")
    add("--dataset", help="data set of the images; default: the run's")
    add("--split", help="its split; default: the run's evaluation split, or test")
    add("--layer", help="layer of Grad-CAM; default: the last feature map")
    add("--images", type=int, default=32, help="number of images; default: 32")
    add("--readme", action="store_true", help="write the tables without measuring")
    options = parser.parse_args()
    if options.readme:
        readme.write_block("explanations", render(json.loads(OUT.read_text())))
        return
    if not (options.run or (options.model and options.weights and options.dataset)):
        parser.error("name RUN, or --model, --weights and --dataset.")
    here, started = machine(), time.perf_counter()
    name, model, variables, card, source = load(options)
    places = np.linspace(0, len(source) - 1, options.images).round().astype(int)
    examples = [source[int(i)] for i in places]
    images = np.stack([example["image"] for example in examples])
    images = zoo.normalize(jnp.asarray(images), card.preprocess)
    shapes = zoo.list_endpoints(model, card.preprocess.shape)
    classes = (card.num_classes, 1)
    maps = [k for k, s in shapes.items() if len(s) == 3 and s[2] not in classes]
    layer = options.layer or maps[-1]
    variables = jax.tree.map(jnp.asarray, variables)
    task = zoo.get_spec(name).task
    if task == "segmentation":
        masks = np.stack([example["mask"] for example in examples])
        measure = partial(measure_masks, masks=masks)
    else:
        measure = measure_classifier
    rows = measure(model, variables, images, layer=layer)
    known = json.loads(OUT.read_text()) if OUT.exists() else {}
    known[f"{name} on {source.name}"] = {
        "machine": here,
        "arguments": sys.argv[1:],
        "images": len(images),
        "layer": layer,
        "seconds": round(time.perf_counter() - started, 1),
        "rows": rows,
    }
    OUT.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
