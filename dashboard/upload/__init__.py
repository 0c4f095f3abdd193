"""The upload component: the reader's own image, made small before it is sent.

Streamlit's own uploader fails axe (its drop zone is a labelled element without a role), and sends
the whole file.
"""

from __future__ import annotations

import base64
import binascii

from attnviz.errors import InputError
from dashboard.components import component
from dashboard.uploads import FORMATS, MOST_BYTES

_upload = component(__file__, "upload", lasting=True)


def upload(side: int, *, key: str) -> bytes | None:
    """The file that the reader brought, not yet decoded; None while there is none.

    Args:
        side: What the model takes, in pixels.
        key: The component's own key on the page.

    Raises:
        InputError: The upload is not a file.
    """
    limits = {"side": side, "bytes": MOST_BYTES, "formats": [f"image/{f.lower()}" for f in FORMATS]}
    sent = _upload(data=limits, key=key, on_picture_change=lambda: None).picture
    return None if sent is None else unpacked(sent)


def unpacked(sent: object) -> bytes:
    """The bytes of what a browser sent as base64.

    Raises:
        InputError: It is no base64 text, or too long.
    """
    if not isinstance(sent, str) or len(sent) > MOST_BYTES * 4 // 3 + 4:
        raise InputError("picture: expected a file of at most 8 MB as text")
    try:
        return base64.b64decode(sent, validate=True)
    except (binascii.Error, ValueError):
        raise InputError("picture: what came is no base64") from None
