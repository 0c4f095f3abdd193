"""Bounded caches keyed by one hashable key.

Streamlit's own caches hash every argument anew at each call, which costs a page of many runs more
than the work that they save.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import wraps
from threading import Lock
from typing import Any, TypeVar

T = TypeVar("T")


def kept(most: int) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Keep what a function returned for its last `most` keys; its first argument is the key.

    The other arguments must follow from the key. Errors are not kept. What is returned is shared
    by all readers, so it is not to be written to.
    """

    def decorate(make: Callable[..., T]) -> Callable[..., T]:
        held: OrderedDict[Hashable, T] = OrderedDict()
        lock = Lock()

        @wraps(make)
        def found(key: Hashable, *others: Any) -> T:
            with lock:
                if key in held:
                    held.move_to_end(key)
                    return held[key]
            value = make(key, *others)
            with lock:
                first = held.setdefault(key, value)  # two readers at once share one
                while len(held) > most:
                    held.popitem(last=False)
            return first

        found.clear = held.clear  # type: ignore[attr-defined]
        return found

    return decorate
