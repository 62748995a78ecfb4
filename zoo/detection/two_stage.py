"""Detection in two stages: propose regions, then look at each one.

References:
  Girshick, Fast R-CNN, 2015.
  Ren, He, Girshick, Sun, Faster R-CNN: Towards Real-Time Object Detection with Region
  Proposal Networks, 2015.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from zoo.detection.contract import (
    Candidates,
    LossSum,
    Postprocess,
    Targets,
    divide_losses,
)
from zoo.detection.roi_head import (
    Classifying,
    decode_regions,
    roi_loss_sums,
    sample_regions,
)
from zoo.detection.rpn import (
    Proposing,
    place_anchors,
    propose,
    rpn_loss_sums,
    sample_anchors,
)
from zoo.spec import Preprocess

Array = jax.Array


class Proposals(NamedTuple):
    """Regions of a batch of images that may hold objects.

    Attributes:
      boxes: float32 [B, R, 4], xyxy in pixels of the network's input.
      valid: bool [B, R]; False for padding.
    """

    boxes: Array
    valid: Array


class TwoStage(nn.Module):
    """Faster R-CNN or, without a region proposal network, Fast R-CNN.

    Attributes:
      backbone: From images to a dict of endpoints.
      neck: From these to a dict of maps, or None.
      rpn: Reads the maps and scores anchors; None where proposals come from outside.
      box_head: From regions' maps [R, s, s, C] to features [R, F].
      predictor: From features to logits and box deltas.
      maps: Names of the endpoints that the region proposal network reads.
      pooled: Names of those that regions are cut out of.
      pool: Cuts regions [R, 4] out of one image's maps.
      proposing: How the first stage chooses.
      classifying: How the second one does.
      preprocess: From pixels to the network's input.
      postprocess: From candidates to detections.
    """

    backbone: nn.Module
    neck: nn.Module | None
    rpn: nn.Module | None
    box_head: nn.Module
    predictor: nn.Module
    maps: tuple[str, ...]
    pooled: tuple[str, ...]
    pool: Callable
    proposing: Proposing | None
    classifying: Classifying
    preprocess: Preprocess
    postprocess: Postprocess

    def __call__(
        self,
        images: Array,
        sizes: Array | None = None,
        train: bool = False,
        targets: Targets | None = None,
        proposals: Proposals | None = None,
    ) -> dict[str, Array]:
        """Proposes regions, and says what each of them holds.

        Args:
          images: float32 [B, H, W, C], preprocessed.
          sizes: float32 [B, 2], see `zoo.detection.contract`.
          train: Whether dropout and batch norm are as in training, and as many regions
            are proposed. It needs `targets`.
          targets: The objects, where losses are wanted, with `rngs={"sample": key}` or
            with keys of their own: then the regions are a sample that keys decide on.
          proposals: Regions from outside, where the network has no stage that proposes
            them. (Without any it looks at the whole image.)

        Returns:
          "sizes", "rois" [B, R, 4], "roi_valid" [B, R], "class_logits" [B, R, K + 1]
          with background first, "box_deltas" [B, R, K + 1, 4] and, where there is a
          first stage, "anchors" [B, A, 4], "rpn_logits" [B, A] and "rpn_deltas"
          [B, A, 4]. With targets also what `sample_anchors` and `sample_regions` give.

        Raises:
          ValueError: Targets or a key are missing, or `proposals` are given to a
            network that makes its own.
        """
        self._check(train, targets, proposals)
        batch, *canvas, _ = images.shape
        if sizes is None:
            sizes = jnp.broadcast_to(jnp.array([canvas], jnp.float32), (batch, 2))
        maps = self._maps(images, train)
        keys = None
        if targets is not None:
            keys = targets.keys
            if keys is None:
                keys = jax.random.split(self.make_rng("sample"), batch)
            # One for the first stage and one for the second.
            keys = jax.vmap(jax.random.split, out_axes=1)(keys)
            targets = _with_a_slot(targets)
        out = {"sizes": sizes}
        if self.rpn is not None:
            read = [maps[name] for name in self.maps]
            first, proposals = self._propose(read, sizes, train, targets, keys, canvas)
            out |= first
        elif proposals is None:
            corners = jnp.concatenate([jnp.zeros_like(sizes), sizes[:, ::-1]], axis=-1)
            proposals = Proposals(corners[:, None], jnp.ones((batch, 1), bool))
        if targets is None:
            out |= {"rois": proposals.boxes, "roi_valid": proposals.valid}
        else:
            sample = jax.vmap(lambda *args: sample_regions(*args, self.classifying))
            out |= sample(keys[1], *proposals, targets)
        pooled = jax.vmap(self.pool)([maps[n] for n in self.pooled], out["rois"])
        shape = pooled.shape[:2]
        features = self.box_head(pooled.reshape(-1, *pooled.shape[2:]), train)
        logits, deltas = self.predictor(features)
        out["class_logits"] = logits.reshape(*shape, *logits.shape[1:])
        out["box_deltas"] = deltas.reshape(*shape, *deltas.shape[1:])
        return out

    def endpoints(self, images: Array, train: bool = False) -> dict[str, Array]:
        """Computes every named activation up to the first stage's outputs.

        What regions are made of depends on which ones are proposed: those activations
        are among the outputs of the call itself.
        """
        out = self._maps(images, train)
        if self.rpn is not None:
            logits, deltas = self.rpn([out[name] for name in self.maps])
            out["rpn_logits"] = jnp.concatenate(logits, axis=1)
            out["rpn_deltas"] = jnp.concatenate(deltas, axis=1)
        return out

    @nn.nowrap
    def losses(
        self, outputs: Mapping[str, Array], targets: Targets
    ) -> dict[str, Array]:
        """Computes the losses, of which training minimises the sum.

        Args:
          outputs: Of a call with these targets.
          targets: The objects.

        Returns:
          "rpn_objectness" and "rpn_box", where there is a first stage, "roi_class" and
          "roi_box": float32 [], 0 where nothing is to be learned.

        Raises:
          ValueError: The outputs are of a call without targets.
        """
        return divide_losses(self.loss_sums(outputs, targets))

    @nn.nowrap
    def loss_sums(
        self, outputs: Mapping[str, Array], targets: Targets
    ) -> dict[str, LossSum]:
        """Computes the sums of `losses`, and the numbers of what is sampled."""
        if "roi_classes" not in outputs:
            raise ValueError(
                "losses need the outputs of a call with targets=..., got outputs "
                f"{sorted(outputs)}."
            )
        first, targets = {}, _with_a_slot(targets)
        if self.proposing is not None:
            first = rpn_loss_sums(outputs, targets, self.proposing)
        return {**first, **roi_loss_sums(outputs, targets, self.classifying)}

    @nn.nowrap
    def decode(
        self, outputs: Mapping[str, Array], sizes: Array | None = None
    ) -> Candidates:
        """Makes candidates of the outputs: a box of each class for each region.

        Args:
          outputs: Of a call without targets.
          sizes: float32 [B, 2]; those of the call where None.
        """
        sizes = outputs["sizes"] if sizes is None else sizes
        return decode_regions(outputs, sizes, self.classifying)

    @nn.nowrap
    def heads(self) -> dict[str, nn.Module]:
        """Lists the parts that have classes, by the names of their fields."""
        return {"predictor": self.predictor}

    def _maps(self, images: Array, train: bool) -> dict[str, Array]:
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"images must be preprocessed floating point, got {images.dtype}; "
                "zoo.make_detector takes uint8."
            )
        out = dict(self.backbone(images, train=train))
        return out if self.neck is None else {**out, **self.neck(out)}

    def _propose(
        self,
        maps: list[Array],
        sizes: Array,
        train: bool,
        targets: Targets | None,
        keys: Array | None,
        canvas: tuple[int, int],
    ) -> tuple[dict[str, Array], Proposals]:
        how = self.proposing
        logits, deltas = self.rpn(maps)
        levels = place_anchors(maps, canvas, how)
        anchors = jnp.concatenate(levels)
        boxes, valid = jax.vmap(
            lambda s, d, size: propose(s, d, levels, size, how, train)
        )(logits, deltas, sizes)
        out = {
            "rpn_logits": jnp.concatenate(logits, axis=1),
            "rpn_deltas": jnp.concatenate(deltas, axis=1),
            "anchors": jnp.broadcast_to(anchors, (sizes.shape[0], *anchors.shape)),
        }
        if targets is not None:
            out["rpn_labels"], out["rpn_matches"] = jax.vmap(
                lambda key, b, v, size: sample_anchors(key, anchors, b, v, size, how)
            )(keys[0], targets.boxes, targets.valid, sizes)
        return out, Proposals(boxes, valid)

    def _check(self, train: bool, targets: object, proposals: object) -> None:
        if train and targets is None:
            raise ValueError(
                "train=True needs targets: a detector of two stages is trained on a "
                "sample of regions that depends on them."
            )
        keys = None if targets is None else targets.keys
        if targets is not None and keys is None and not self.has_rng("sample"):
            raise ValueError("targets need rngs={'sample': key}, which is not given.")
        if self.rpn is not None and proposals is not None:
            raise ValueError(
                "proposals are given, but the network proposes regions itself; "
                "fast_rcnn_vgg16 takes them from outside."
            )


def _with_a_slot(targets: Targets) -> Targets:
    """Makes sure that there is a slot to be read, where there is no object at all."""
    objects = targets[:3]
    if not targets.valid.shape[1]:
        objects = (jnp.pad(x, [(0, 0), (0, 1), (0, 0)][: x.ndim]) for x in objects)
    return Targets(*objects)
