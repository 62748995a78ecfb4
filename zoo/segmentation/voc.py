"""What networks for PASCAL VOC share: the names of its classes."""

# In the order of its masks' values; 255 marks the objects' outlines and is ignored.
CLASS_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus"),
    *("car", "cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike"),
    *("person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
