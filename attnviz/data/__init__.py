"""Images whose places are known: masks, boxes, polygons and patches.

samples        one image and what is known of it; batches of one size
sources        tuples, mappings, torchvision's data sets, loaders → samples
folders, coco  annotations on disk → samples
items          one item of such a data set: image, place and label by name
mask_values    what the values of a mask file or a PIL mask are
patched        a patch laid into the images of any data set
scenes         an annotated image before preprocessing
preprocessing  the model's own transform, applied to images and masks alike
"""

from attnviz.data.coco import coco
from attnviz.data.folders import mask_folder
from attnviz.data.patched import patched
from attnviz.data.preprocessing import Preprocessing, preprocessing
from attnviz.data.samples import Batch, Sample, Samples, batches
from attnviz.data.sources import samples_of

__all__ = [
    "Batch",
    "Preprocessing",
    "Sample",
    "Samples",
    "batches",
    "coco",
    "mask_folder",
    "patched",
    "preprocessing",
    "samples_of",
]
