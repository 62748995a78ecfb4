"""Pictures of predictions: bars of classes, boxes, masks."""
