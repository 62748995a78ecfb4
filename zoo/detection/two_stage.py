"""Detection in two stages: propose regions, then classify and refine each of them.

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

from zoo.checks import check_floating
from zoo.detection.roi_heads import (
    RoIHeadConfig,
    decode_regions,
    roi_loss_sums,
    sample_regions,
)
from zoo.detection.rpn import (
    RPNConfig,
    filter_proposals,
    grid_anchors,
    rpn_loss_sums,
    sample_anchors,
)
from zoo.detection.types import Candidates, LossSum, Postprocess, Targets, divide_losses
from zoo.spec import Preprocess

Array = jax.Array


class Proposals(NamedTuple):
    """The proposed regions of a batch of images.

    Attributes:
      boxes: float32 [B, R, 4], xyxy in pixels of the network's input.
      valid: bool [B, R]; False for padding.
    """

    boxes: Array
    valid: Array


class TwoStage(nn.Module):
    """Faster R-CNN, or Fast R-CNN if there is no region proposal network.

    Attributes:
      backbone: Computes a dict of endpoints from images.
      neck: Computes a dict of feature maps from the endpoints, or None.
      rpn: Computes scores and deltas of anchors; None if proposals are given.
      box_head: Computes features [R, F] from the feature maps [R, s, s, C] of regions.
      predictor: Computes logits and box deltas from the features.
      rpn_endpoints: Names of the endpoints that the region proposal network reads.
      roi_endpoints: Names of the endpoints that regions are pooled from.
      roi_pool: Pools regions [R, 4] from the feature maps of one image.
      rpn_config: The parameters of the first stage, or None.
      roi_config: The parameters of the second stage.
      preprocess: The preprocessing of images.
      postprocess: The parameters of the conversion from candidates to detections.
    """

    backbone: nn.Module
    neck: nn.Module | None
    rpn: nn.Module | None
    box_head: nn.Module
    predictor: nn.Module
    rpn_endpoints: tuple[str, ...]
    roi_endpoints: tuple[str, ...]
    roi_pool: Callable
    rpn_config: RPNConfig | None
    roi_config: RoIHeadConfig
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
        """Proposes regions, and computes class logits and box deltas of each of them.

        Args:
          images: float32 [B, H, W, C], preprocessed.
          sizes: float32 [B, 2], see `zoo.detection.types`.
          train: Whether dropout, batch norm and the numbers of proposals are those of
            training. Needs `targets`.
          targets: The ground truth, if losses are wanted. Regions are then sampled
            with `targets.keys` or, without these, with `rngs={"sample": key}`.
          proposals: Regions of interest, for networks without a region proposal
            network; None for one region that is the whole image.

        Returns:
          "sizes", "rois" [B, R, 4], "roi_valid" [B, R], "class_logits" [B, R, K + 1]
          with background first, "box_deltas" [B, R, K + 1, 4] and, with a region
          proposal network, "anchors" [B, A, 4], "rpn_logits" [B, A] and "rpn_deltas"
          [B, A, 4]. With targets also the results of `sample_anchors` and
          `sample_regions`.

        Raises:
          ValueError: Targets or a key are missing, or `proposals` are given to a
            network with a region proposal network.
        """
        self._check(train, targets, proposals)
        batch, *canvas, _ = images.shape
        if sizes is None:
            sizes = jnp.broadcast_to(jnp.array([canvas], jnp.float32), (batch, 2))
        features = self._features(images, train)
        keys = None
        if targets is not None:
            keys = targets.keys
            if keys is None:
                keys = jax.random.split(self.make_rng("sample"), batch)
            # One key for each stage.
            keys = jax.vmap(jax.random.split, out_axes=1)(keys)
            targets = _pad_empty(targets)
        out = {"sizes": sizes}
        if self.rpn is not None:
            maps = [features[name] for name in self.rpn_endpoints]
            first, proposals = self._propose(maps, sizes, train, targets, keys, canvas)
            out |= first
        elif proposals is None:
            corners = jnp.concatenate([jnp.zeros_like(sizes), sizes[:, ::-1]], axis=-1)
            proposals = Proposals(corners[:, None], jnp.ones((batch, 1), bool))
        if targets is None:
            out |= {"rois": proposals.boxes, "roi_valid": proposals.valid}
        else:
            sample = jax.vmap(lambda *args: sample_regions(*args, self.roi_config))
            out |= sample(keys[1], *proposals, targets)
        maps = [features[name] for name in self.roi_endpoints]
        pooled = jax.vmap(self.roi_pool)(maps, out["rois"])
        shape = pooled.shape[:2]
        x = self.box_head(pooled.reshape(-1, *pooled.shape[2:]), train)
        logits, deltas = self.predictor(x)
        out["class_logits"] = logits.reshape(*shape, *logits.shape[1:])
        out["box_deltas"] = deltas.reshape(*shape, *deltas.shape[1:])
        return out

    def endpoints(self, images: Array, train: bool = False) -> dict[str, Array]:
        """Computes the named activations, including the outputs of the first stage.

        Those of the second stage depend on the proposals; `__call__` returns them.
        """
        out = self._features(images, train)
        if self.rpn is not None:
            logits, deltas = self.rpn([out[name] for name in self.rpn_endpoints])
            out["rpn_logits"] = jnp.concatenate(logits, axis=1)
            out["rpn_deltas"] = jnp.concatenate(deltas, axis=1)
        return out

    @nn.nowrap
    def losses(
        self, outputs: Mapping[str, Array], targets: Targets
    ) -> dict[str, Array]:
        """Computes the losses, whose sum is minimized.

        Args:
          outputs: The outputs of a call with the same targets.
          targets: The ground truth.

        Returns:
          "rpn_objectness" and "rpn_box", with a region proposal network, "roi_class"
          and "roi_box": float32 []; 0 if nothing is sampled.

        Raises:
          ValueError: The outputs are those of a call without targets.
        """
        return divide_losses(self.loss_sums(outputs, targets))

    @nn.nowrap
    def loss_sums(
        self, outputs: Mapping[str, Array], targets: Targets
    ) -> dict[str, LossSum]:
        """Computes the losses as sums and the numbers of sampled anchors or regions."""
        if "roi_classes" not in outputs:
            raise ValueError(
                "losses need the outputs of a call with targets=..., got outputs "
                f"{sorted(outputs)}."
            )
        sums, targets = {}, _pad_empty(targets)
        if self.rpn_config is not None:
            sums = rpn_loss_sums(outputs, targets, self.rpn_config)
        return {**sums, **roi_loss_sums(outputs, targets, self.roi_config)}

    @nn.nowrap
    def decode(
        self, outputs: Mapping[str, Array], sizes: Array | None = None
    ) -> Candidates:
        """Converts outputs to candidates, with a box of each class for each region.

        Args:
          outputs: The outputs of a call without targets.
          sizes: float32 [B, 2]; None for those of the call.
        """
        sizes = outputs["sizes"] if sizes is None else sizes
        return decode_regions(outputs, sizes, self.roi_config)

    @nn.nowrap
    def heads(self) -> dict[str, nn.Module]:
        """Returns the submodules whose outputs depend on the classes."""
        return {"predictor": self.predictor}

    def _features(self, images: Array, train: bool) -> dict[str, Array]:
        check_floating(images)
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
        config = self.rpn_config
        logits, deltas = self.rpn(maps)
        levels = grid_anchors(maps, canvas, config)
        anchors = jnp.concatenate(levels)
        boxes, valid = jax.vmap(
            lambda s, d, size: filter_proposals(s, d, levels, size, config, train)
        )(logits, deltas, sizes)
        out = {
            "rpn_logits": jnp.concatenate(logits, axis=1),
            "rpn_deltas": jnp.concatenate(deltas, axis=1),
            "anchors": jnp.broadcast_to(anchors, (sizes.shape[0], *anchors.shape)),
        }
        if targets is not None:
            out["rpn_labels"], out["rpn_matches"] = jax.vmap(
                lambda key, b, v, size: sample_anchors(key, anchors, b, v, size, config)
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


def _pad_empty(targets: Targets) -> Targets:
    """Adds a slot for padding to targets without slots, so that one can be indexed."""
    objects = targets[:3]
    if not targets.valid.shape[1]:
        objects = (jnp.pad(x, [(0, 0), (0, 1), (0, 0)][: x.ndim]) for x in objects)
    return Targets(*objects)
