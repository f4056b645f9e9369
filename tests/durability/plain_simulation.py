"""The judge of the fast simulation: whole years, event after event, no biasing, no algebra.

Slow and obvious on purpose; it shares nothing with objfs/durability/monte_carlo.py but the
layout and the model.
"""

from __future__ import annotations

import random
from collections import Counter

from objfs.durability.figures import Model
from objfs.durability.layout import Layout


def object_losses(layout: Layout, model: Model, years: int, seed: int) -> float:
    """The share of (year, group) pairs in which a stripe of the group was lost."""
    generator = random.Random(seed)
    levels = [
        ("device", model.disk_rate),
        ("host", model.host_rate),
        ("rack", model.rack_rate),
        ("zone", model.power_rate),
    ]
    events = []
    for level, rate in levels:
        for name in sorted({getattr(place, level) for place in layout.places}):
            devices = sorted({place.device for place in layout.places if getattr(place, level) == name})
            events.append((rate, level == "zone", devices))
    total = sum(rate for rate, _, _ in events)
    lost = 0
    for _ in range(years):
        now, down, gone = generator.expovariate(total), dict[str, float](), set[int]()
        while now < model.years:
            _, power, devices = generator.choices(events, [rate for rate, _, _ in events])[0]
            struck = {device for device in devices if not power or generator.random() < model.power_loss}
            newly = {device for device in struck if down.get(device, 0.0) <= now}
            down.update(dict.fromkeys(struck, now + model.down_years))
            for index, group in enumerate(layout.groups):
                fragments = Counter(layout.places[place].device for place in group)
                if not newly & fragments.keys():
                    continue
                missing = sum(number for device, number in fragments.items() if down.get(device, 0.0) > now)
                left = layout.n - missing
                unreadable = sum(generator.random() < model.fragment_unreadable for _ in range(left))
                if missing + unreadable > layout.m:
                    gone.add(index)
            now += generator.expovariate(total)
        lost += len(gone)
    return lost / years / len(layout.groups)
