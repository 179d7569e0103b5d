"""A thread-safe LRU cache for expensive values."""

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from cachetools import LRUCache

T = TypeVar("T")


class Latest(Generic[T]):
    """Keeps the most recently used values: ``count`` of them, or of total size ``count``.

    Args:
        size: of a value; default 1.
    """

    def __init__(self, count: int, size: Callable[[T], int] | None = None):
        self._kept: LRUCache[Hashable, T] = LRUCache(count, size)
        self._lock = threading.RLock()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def of(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of a key, computed by ``make`` if it is not cached; other threads wait meanwhile."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
            return self._kept[key]

    def clear(self) -> None:
        """Remove all values."""
        with self._lock:
            self._kept.clear()

    def drop(self, key: Hashable) -> None:
        """Remove a value, if cached."""
        with self._lock:
            self._kept.pop(key, None)
