"""Sizes, times, rates and percentages as people type them, and as they are shown. Pure.

Strict: what is not understood is a ValueError whose text says what was expected.
"""

from __future__ import annotations

import math
import re

_NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)([A-Za-z%]*)", re.ASCII)
_SIZE_UNITS = {"": 1, "B": 1} | {
    unit + suffix: base**power
    for power, unit in enumerate("KMGTP", 1)
    for suffix, base in (("", 1000), ("B", 1000), ("iB", 1024))
}
_TIME_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def size(text: str) -> int:
    """4T, 100MB (powers of 1000), 64KiB (powers of 1024) → bytes, at least 1."""
    number, unit = _split(text, "a size such as 4T, 100MB or 64KiB")
    amount = number * _SIZE_UNITS.get(unit, math.nan)
    if not 1 <= amount < 1e24:  # nan and what overflows fail here too
        raise ValueError(f"{text!r} is not a size such as 4T, 100MB or 64KiB")
    return int(amount)


def duration(text: str) -> float:
    """90s, 15m, 1.5h, 2d, 1w → seconds, above zero."""
    number, unit = _split(text, "a time such as 90s, 15m, 1.5h or 2d")
    seconds = number * _TIME_UNITS.get(unit, math.nan)
    if not 0 < seconds < 1e12:
        raise ValueError(f"{text!r} is not a time such as 90s, 15m, 1.5h or 2d")
    return seconds


def chance(text: str) -> float:
    """1.5%, 0.015 or 1e-15, from 0 to below 1."""
    number, unit = _split(text, "a chance such as 1.5% or 0.015")
    share = number / 100 if unit == "%" else number
    if unit not in ("", "%") or not 0 <= share < 1:
        raise ValueError(f"{text!r} is not a chance from 0 to below 100%, such as 1.5% or 0.015")
    return share


def amount(text: str) -> float:
    """A plain number, 0 or more, such as 0.5 or 1e-15."""
    number, unit = _split(text, "a number such as 0.5 or 1e-15")
    if unit or not math.isfinite(number):
        raise ValueError(f"{text!r} is not a number such as 0.5 or 1e-15")
    return number


def count(text: str) -> int:
    """A whole number of 1 or more."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and int(text) >= 1):
        raise ValueError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def years(text: str) -> float:
    found = amount(text)
    if not 0 < found <= 1000:
        raise ValueError(f"{text!r} is not a number of years above 0, at most 1000")
    return found


def trials(text: str) -> int:
    found = count(text)
    if not 100 <= found <= 10_000_000:
        raise ValueError(f"{text!r} is not a number of trials from 100 to 10000000")
    return found


def seed(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ValueError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def show_duration(seconds: float) -> str:
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("m", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds >= 1 else "under 1 s"


def show_size(amount: float) -> str:
    for unit, length in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if amount >= length:
            return f"{amount / length:.3g} {unit}"
    return f"{amount:.0f} B"


def show_chance(share: float) -> str:
    return f"{share * 100:.3g} %"


def nines(probability: float) -> float:
    """How many nines of safety: 1e-11 → 11. A probability of 0 has infinitely many."""
    return math.inf if probability <= 0 else max(-math.log10(probability), 0.0)


def _split(text: str, expected: str) -> tuple[float, str]:
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not {expected}")
    return float(match[1]), match[2]
