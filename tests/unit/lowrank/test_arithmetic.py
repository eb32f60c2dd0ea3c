"""The arithmetic of materialisation against exact fractions, and digests that must come out on every machine."""

from __future__ import annotations

import hashlib
import random
import struct
from fractions import Fraction
from math import ldexp

import numpy as np
import pytest

from common.errors import NonFiniteError
from common.lowrank.arithmetic import add_product, narrow, widen

BITS = {"F32": (24, -126), "BF16": (8, -126), "F16": (11, -14)}  # significand bits, smallest normal exponent


def rounded(value: Fraction, dtype: str) -> Fraction:
    """``value`` rounded to nearest, ties to even, in ``dtype``, by rational arithmetic alone (no overflow here)."""
    bits, smallest = BITS[dtype]
    if value == 0:
        return value
    exponent = abs(value.numerator).bit_length() - value.denominator.bit_length()  # or one more than that of the leading bit
    exponent = max(smallest, exponent - (abs(value) < Fraction(2) ** exponent))
    unit = Fraction(2) ** (exponent - bits + 1)
    return round(value / unit) * unit  # Python's round is half to even


def oracle(w: list[list[Fraction]], b: list[list[Fraction]], a: list[list[Fraction]], dtype: str) -> list[list[Fraction]]:
    """The recipe of ``docs/formats.md``, word for word."""
    made = []
    for i, row in enumerate(w):
        line = []
        for j, accumulated in enumerate(row):
            total = accumulated
            for k in range(len(a)):
                total = rounded(total + rounded(b[i][k] * a[k][j], "F32"), "F32")
            line.append(rounded(total, dtype))
        made.append(line)
    return made


def stored(values: list[list[Fraction]], dtype: str) -> bytes:
    flat = [float(value) for row in values for value in row]
    if dtype == "F16":
        return struct.pack(f"<{len(flat)}e", *flat)
    wide = struct.pack(f"<{len(flat)}f", *flat)
    return wide if dtype == "F32" else b"".join(wide[at + 2 : at + 4] for at in range(0, len(wide), 4))


def draw(rng: random.Random, rows: int, columns: int, dtype: str, spread: int) -> list[list[Fraction]]:
    """Values whose sizes differ by up to ``2 ** spread``, so that products and sums must be rounded."""
    return [[rounded(Fraction(ldexp(rng.uniform(-1, 1), rng.randint(-spread, 0))), dtype) for _ in range(columns)] for _ in range(rows)]


def computed(w: list[list[Fraction]], b: list[list[Fraction]], a: list[list[Fraction]], dtype: str) -> bytes:
    values = widen(stored(w, dtype), dtype).reshape(len(w), -1)
    add_product(values, widen(stored(b, dtype), dtype).reshape(len(b), -1), widen(stored(a, dtype), dtype).reshape(len(a), -1))
    return narrow(values, dtype)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("spread", [2, 12])
def test_every_bit_is_that_of_rational_arithmetic(dtype: str, spread: int) -> None:
    rng = random.Random(spread)
    w, b, a = draw(rng, 5, 9, dtype, spread), draw(rng, 5, 7, dtype, spread), draw(rng, 7, 9, dtype, spread)
    assert computed(w, b, a, dtype) == stored(oracle(w, b, a, dtype), dtype)


def test_subnormal_numbers_are_kept() -> None:
    tiny = Fraction(2) ** -140
    w, b, a = [[tiny, -tiny]], [[Fraction(2) ** -70]], [[Fraction(2) ** -72, Fraction(3) * Fraction(2) ** -73]]
    assert computed(w, b, a, "F32") == stored(oracle(w, b, a, "F32"), "F32")
    assert widen(computed(w, b, a, "F32"), "F32")[0] != widen(stored(w, "F32"), "F32")[0]


def test_product_and_sum_are_rounded_apart() -> None:
    """``1 - (1 - u)(1 + u)`` is 2**-46 when product and sum are fused into one operation, and 0 when each is rounded."""
    u = Fraction(2) ** -23
    made = computed([[-Fraction(1)]], [[1 - u]], [[1 + u]], "F32")
    assert widen(made, "F32")[0] == 0.0


def test_sums_go_in_the_order_of_the_rank() -> None:
    big = Fraction(2) ** 25
    one = [[Fraction(1)] * 3]
    assert widen(computed([[Fraction(0)]], one, [[big], [Fraction(1)], [-big]], "F32"), "F32")[0] == 0.0
    assert widen(computed([[Fraction(0)]], one, [[big], [-big], [Fraction(1)]], "F32"), "F32")[0] == 1.0


def test_ties_go_to_even() -> None:
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 1 + 2**-8 + 2**-23], dtype=np.float32)
    assert [float(value) for value in widen(narrow(values, "BF16"), "BF16")] == [1.0, 1 + 2**-6, -1.0, 1 + 2**-7]


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("F32", float("inf")), ("F16", 65520.0), ("BF16", 3.4e38), ("F32", float("nan")), ("BF16", float("-nan")), ("F16", float("-inf"))],
)
def test_what_is_not_finite_is_refused(dtype: str, value: float) -> None:
    values = np.array([0.0, value], dtype=np.float32)
    if dtype == "BF16" and value != value:
        values.view(np.uint32)[1] = 0xFFFFFFFF  # the NaN whose rounding carries into zero
    with pytest.raises(NonFiniteError):
        narrow(values, dtype)


def test_values_just_below_the_limit_are_kept() -> None:
    assert widen(narrow(np.array([65519.0], dtype=np.float32), "F16"), "F16")[0] == 65504.0
    largest = np.array([0x7F7F7FFF], dtype=np.uint32).view(np.float32)
    assert narrow(largest, "BF16") == b"\x7f\x7f"


@pytest.mark.parametrize(
    ("dtype", "digest"),
    [
        ("F32", "fc14478dcb944ab16c0a2b23cbb7cc3b0939ddbc82afaa4cafbcf279a8e585a3"),
        ("BF16", "5ce944e6d714ad86c115b1e2351f8b92edbac85fbb57a1608bdb14e5d2e313bb"),
        ("F16", "0b8f23db9c6d3b506bbcb88b7ea62903c0eb9fd85f44e845b54773ade7a8739c"),
    ],
)
def test_golden_digests(dtype: str, digest: str) -> None:
    """The vector of ``docs/formats.md``, section 5.1: ``W`` ``[40, 300]``, rank 24, values from SHA-256 in counter mode."""
    w, b, a = (vector(label, count, dtype) for label, count in (("W", 40 * 300), ("B", 40 * 24), ("A", 24 * 300)))
    values = w.reshape(40, 300)
    add_product(values, b.reshape(40, 24), a.reshape(24, 300))
    assert hashlib.sha256(narrow(values, dtype)).hexdigest() == digest


def vector(label: str, count: int, dtype: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Values ``(u - 32768) / 65536`` for the little-endian 16-bit words ``u`` of SHA-256(label + "0"), SHA-256(label + "1") ..."""
    stream = b"".join(hashlib.sha256(f"{label}{block}".encode()).digest() for block in range(-(-count // 16)))
    words = np.frombuffer(stream, "<u2")[:count].astype(np.float32)
    return widen(narrow((words - 32768) / np.float32(65536), dtype), dtype)
