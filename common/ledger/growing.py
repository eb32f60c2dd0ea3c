"""A mapping that grows one key at a time and whose every earlier state stays as it was: what lets a million entries be folded singly.

The state of the fold is immutable, and each entry changes a key or two of it. Copying whole dictionaries for that costs as much as the log
is long. Here a state is a few dictionaries on top of each other, later ones shadowing earlier ones and each at most as large as the one
below; states share all but the topmost (the logarithmic method of Bentley and Saxe). An insertion costs O(log n), amortised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar, overload

__all__ = ["GrowingMap", "LayeredMap"]

V = TypeVar("V")
D = TypeVar("D")


class LayeredMap(Mapping[str, V]):
    """An immutable mapping; iterates in the order of first insertion. Made by :meth:`GrowingMap.frozen`."""

    __slots__ = ("_layers", "_size")

    def __init__(self, layers: tuple[dict[str, V], ...] = (), size: int = 0) -> None:
        self._layers, self._size = layers, size

    @property
    def layers(self) -> tuple[dict[str, V], ...]:
        """The dictionaries, oldest first. Nobody may change them."""
        return self._layers

    def __getitem__(self, key: str) -> V:
        for layer in reversed(self._layers):
            if key in layer:
                return layer[key]
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        if len(self._layers) == 1:
            return iter(self._layers[0])
        return iter({key: None for layer in self._layers for key in layer})

    def __len__(self) -> int:
        return self._size


class GrowingMap(Generic[V]):
    """A mapping under construction, from the state before. What it began with is never changed."""

    def __init__(self, before: Mapping[str, V] | None = None) -> None:
        if before is None:
            before = LayeredMap()
        self._before = before if isinstance(before, LayeredMap) else LayeredMap((dict(before),), len(before))
        self._top: dict[str, V] = {}
        self._size = len(self._before)

    def __getitem__(self, key: str) -> V:
        return self._top[key] if key in self._top else self._before[key]

    def __setitem__(self, key: str, value: V) -> None:
        if key not in self:
            self._size += 1
        self._top[key] = value

    def __contains__(self, key: str) -> bool:
        return key in self._top or key in self._before

    @overload
    def get(self, key: str) -> V | None: ...

    @overload
    def get(self, key: str, default: D) -> V | D: ...

    def get(self, key: str, default: D | None = None) -> V | D | None:
        """The value of a key, or ``default``."""
        try:
            return self[key]
        except KeyError:
            return default

    def values(self) -> list[V]:
        """All values as they are now, in the order of :meth:`items`."""
        return [value for _, value in self.items()]

    def items(self) -> list[tuple[str, V]]:
        """All keys and values as they are now, in the order of first insertion; a copy, so the mapping may change meanwhile."""
        return list(self.frozen().items())

    def frozen(self) -> LayeredMap[V]:
        """The mapping as it is now."""
        if not self._top:
            return self._before
        layers, top = list(self._before.layers), dict(self._top)
        while layers and len(layers[-1]) <= len(top):
            top = {**layers.pop(), **top}
        return LayeredMap((*layers, top), self._size)
