"""The growing mapping against a plain dictionary: same content and order, earlier states untouched, and little copied."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.ledger.growing import GrowingMap, LayeredMap

STEPS = st.lists(st.lists(st.tuples(st.sampled_from("abcdefghij"), st.integers(0, 99)), max_size=4), max_size=30)


@given(STEPS)
def test_it_is_a_dictionary_and_every_earlier_state_stays(steps: list[list[tuple[str, int]]]) -> None:
    states: list[tuple[LayeredMap[int], list[tuple[str, int]]]] = []
    plain: dict[str, int] = {}
    state: LayeredMap[int] = LayeredMap()
    for step in steps:
        growing = GrowingMap(state)
        for key, value in step:
            growing[key] = value
            plain[key] = value
            assert growing[key] == value
        assert growing.items() == list(plain.items())
        assert growing.values() == list(plain.values())
        state = growing.frozen()
        states.append((state, list(plain.items())))
    for kept, items in states:
        assert list(kept.items()) == items
        assert len(kept) == len(items)
        assert kept == dict(items)
        assert "z" not in kept
        assert GrowingMap(kept).get("z", 7) == 7


def test_what_was_frozen_is_not_changed_by_going_on_with_the_same_object() -> None:
    growing: GrowingMap[int] = GrowingMap({"a": 1})
    growing["b"] = 2
    kept = growing.frozen()
    growing["a"] = 3
    assert (dict(kept), dict(growing.frozen())) == ({"a": 1, "b": 2}, {"a": 3, "b": 2})


def test_the_cost_of_one_more_key_grows_with_the_logarithm() -> None:
    state: LayeredMap[int] = LayeredMap()
    copied = 0
    for number in range(4096):
        growing = GrowingMap(state)
        growing[str(number)] = number
        before, state = {id(layer) for layer in state.layers}, growing.frozen()
        copied += sum(len(layer) for layer in state.layers if id(layer) not in before)
    assert len(state.layers) <= 13
    assert copied <= 4096 * 13
