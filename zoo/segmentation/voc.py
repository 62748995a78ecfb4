"""The class names of PASCAL VOC."""

# In the order of the values of its masks; 255 marks the outlines and is ignored.
CLASS_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus"),
    *("car", "cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike"),
    *("person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
