"""An R-CNN whose features are the pixels of a region."""

from flax import linen as nn

from zoo.detection.rcnn import RCNN, RegionHead
from zoo.spec import Preprocess

PREPROCESS = Preprocess(16, 3, (0.5,) * 3, (1.0,) * 3, fit="stretch")


class Pixels(nn.Module):
    """A backbone without parameters: its features are the region's own pixels."""

    @nn.compact
    def __call__(self, regions, train=False):
        pool5 = nn.avg_pool(regions, (2, 2), (2, 2))
        return {"pool5": pool5, "fc7": pool5.reshape(len(pool5), -1) + 0.5}


def make_model(num_classes=2):
    return RCNN(Pixels(), RegionHead(num_classes), PREPROCESS, context=2)
