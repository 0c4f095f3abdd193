"""Which token is which place of the image: proven while watching, or measured by `locate`."""

from attnviz.places.measurement import locate
from attnviz.places.places import Layout, Places, RecordPlaces, Role, UnknownRecordError

__all__ = ["Layout", "Places", "RecordPlaces", "Role", "UnknownRecordError", "locate"]
