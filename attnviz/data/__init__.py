"""Images whose places are known: masks, boxes, polygons and patches."""
