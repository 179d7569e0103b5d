"""The latest few answers to expensive questions, in an LRU cache that threads may share."""

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from cachetools import LRUCache

T = TypeVar("T")


class Latest(Generic[T]):
    """Keeps so many values, those asked for last."""

    def __init__(self, count: int):
        self._kept: LRUCache[Hashable, T] = LRUCache(count)
        self._lock = threading.RLock()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def of(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of a key, made if it is not kept; by one thread, while others that ask for any key wait."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
            return self._kept[key]

    def drop(self, key: Hashable) -> None:
        """Let go of a value."""
        with self._lock:
            self._kept.pop(key, None)
