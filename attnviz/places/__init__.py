"""Which token is which place of the image: proven while watching, or measured by `locate`."""

from attnviz.places.layout import Layout, UnknownRecordError
from attnviz.places.measurement import locate
from attnviz.places.records import placed, unplaced
from attnviz.token_places import Places, RecordPlaces, Role

__all__ = [
    "Layout",
    "Places",
    "RecordPlaces",
    "Role",
    "UnknownRecordError",
    "locate",
    "placed",
    "unplaced",
]
