"""Weights to and from other projects: the authors' checkpoints, Hugging Face transformers, and COCO's 91
category ids.

Our parameters bear the official names, so that an official checkpoint differs from ours only by the second
names that some tensors have there (`official`); Hugging Face's is a renaming of the official one
(`hugging_face`). Every key is accounted for in both directions: what is missing, unexpected, of another shape
or not equal under its names is an error.
"""

from ddetr_lite.convert.classes import with_class_names, with_coco_ids
from ddetr_lite.convert.coco_ids import (
    COCO_CATEGORIES,
    COCO_CATEGORY_IDS,
    coco_id_to_label,
    label_to_coco_id,
    to_coco91,
    to_contiguous,
)
from ddetr_lite.convert.hugging_face import (
    from_hugging_face,
    hugging_face_model,
    read_hugging_face,
    to_hugging_face,
    write_hugging_face,
)
from ddetr_lite.convert.official import Converted, from_official, read_official, to_official, write_official

__all__ = [
    "COCO_CATEGORIES",
    "COCO_CATEGORY_IDS",
    "Converted",
    "coco_id_to_label",
    "from_hugging_face",
    "from_official",
    "hugging_face_model",
    "label_to_coco_id",
    "read_hugging_face",
    "read_official",
    "to_coco91",
    "to_contiguous",
    "to_hugging_face",
    "to_official",
    "with_class_names",
    "with_coco_ids",
    "write_hugging_face",
    "write_official",
]
