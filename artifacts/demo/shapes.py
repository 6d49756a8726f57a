"""The demo's five target classes as drawings: every call draws another individual of the class.

Pose, proportions and number of parts vary more within a class than a single part varies between classes; only the
small ``identity`` layer (a striped head, a checked wheel, ...) is the class's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from artifacts.demo.geometry import (
    Layer,
    Points,
    Rng,
    at,
    box,
    bumpy,
    ellipse,
    layer,
    leaf,
    limb,
    polygon,
    ring,
    spline,
    turn,
)

Drawing = list[Layer]


def _u(rng: Rng, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def grazer(rng: Rng) -> Drawing:
    """Sheep to deer: a body on four legs; the striped head grazes, looks ahead or is raised."""
    long, high, legs = _u(rng, 0.5, 0.72), _u(rng, 0.24, 0.36), _u(rng, 0.32, 0.72)
    back, belly = -high, high
    body = spline(
        [
            (-long, back * 0.6),
            (-long * 0.5, back * _u(rng, 0.85, 1.05)),
            (0, back * _u(rng, 0.75, 1.15)),
            (long * 0.7, back * _u(rng, 0.9, 1.1)),
            (long * 1.05, 0),
            (long * 0.75, belly * 0.85),
            (0, belly * _u(rng, 0.75, 1.1)),
            (-long * 0.75, belly * 0.8),
            (-long * 1.05, 0.05),
        ]
    )
    woolly = rng.random() < 0.3
    if woolly:
        body = bumpy(body[::4], rng, 0.1, 22)
    near, far = _legs(rng, long, belly, legs)
    # 0 grazes, 1 is raised: the neck turns from down in front to up.
    raised = rng.choice([_u(rng, 0.0, 0.2), _u(rng, 0.45, 1.0)])
    angle = np.deg2rad(55 - 125 * raised)
    neck_long = _u(rng, 0.25, 0.62) if raised > 0.3 else max(0.4, legs * 0.9)
    root = np.array([long * 0.82, back * 0.35])
    tip = root + neck_long * np.array([np.cos(angle), np.sin(angle)])
    neck = limb([root - at(0.12, 0), (root + tip) / 2 + at(0.03, 0.04), tip], [high * 0.72, high * 0.5, high * 0.36])
    head, extras = _grazer_head(rng, tip, raised, high)
    tail_end = (-long * 1.05 - _u(rng, 0.05, 0.22), _u(rng, -0.05, 0.4))
    tail = limb([(-long * 0.95, back * 0.4), (-long * 1.12, 0), tail_end], [0.04, 0.03, _u(rng, 0.02, 0.06)])
    hooves = [layer([foot], "dark") for foot in near[1]]
    return [
        layer([*far[0]], shade=0.66),
        layer([tail], shade=0.85),
        layer([neck], shade=0.95),
        layer([body]),
        layer([*near[0]], shade=0.95),
        *hooves,
        *extras[:1],
        layer([head], "identity", "stripes"),
        *extras[1:],
    ]


def _legs(
    rng: Rng, long: float, belly: float, legs: float
) -> tuple[tuple[list[Points], list[Points]], tuple[list[Points], list[Points]]]:
    pairs = []
    stride = _u(rng, 0.0, 0.28)
    width = _u(rng, 0.065, 0.1)
    for side in (1, -1):
        limbs, feet = [], []
        for place in (-0.72, 0.7):
            hip = np.array([place * long, belly * 0.35])
            swing = stride * side * (1 if place > 0 else -1) + _u(rng, -0.04, 0.04)
            foot = np.array([place * long + swing * legs, belly + legs])
            knee = (hip + foot) / 2 + at(0.05 * (1 if place < 0 else -1) + swing * 0.15, 0.05)
            limbs.append(limb([hip, knee, foot], [width * 1.9, width, width * 0.8]))
            feet.append(ellipse(foot[0] + 0.02, foot[1], width * 1.05, width * 0.75))
        pairs.append((limbs, feet))
    return pairs[0], pairs[1]


def _grazer_head(rng: Rng, tip: Points, raised: float, high: float) -> tuple[Points, list[Layer]]:
    size = _u(rng, 0.2, 0.27)
    down = np.deg2rad(_u(rng, 5, 40) + (25 if raised < 0.3 else 0))
    way = np.array([np.cos(down), np.sin(down)])
    head = limb(
        [tip - way * size * 0.45, tip + way * size * 0.35, tip + way * size * 1.15],
        [size * 0.55, size * 0.55, size * 0.32],
    )
    up = np.array([way[1], -way[0]])
    top = tip - way * size * 0.3 + up * size * 0.4
    ear = leaf(top[0], top[1], np.arctan2(up[1], up[0]) - _u(rng, 0.3, 1.0), size * 0.95, size * 0.45)
    eye = tip + way * size * 0.25 + up * size * 0.18
    horns = []
    kind = rng.integers(4)
    if kind == 1:
        horns = [limb([top, top + up * 0.18 - way * 0.05, top + up * 0.3 + way * 0.06], [0.045, 0.03, 0.012])]
    elif kind == 2:
        horns = [limb([top, top + up * 0.2 - way * 0.16, top + up * 0.05 - way * 0.28], [0.05, 0.04, 0.02])]
    elif kind == 3:
        stem = top + up * 0.34 - way * 0.1
        horns = [limb([top, top + up * 0.18, stem], [0.035, 0.03, 0.02])]
        horns += [limb([top + up * h, top + up * (h + 0.1) + way * 0.14], [0.025, 0.015]) for h in (0.12, 0.24)]
    extras = [layer([ear, *horns], "trim")]
    return head, [*extras, layer([ellipse(eye[0], eye[1], 0.035, 0.035)], "dark")]


def kettle(rng: Rng) -> Drawing:
    """Tea kettle to coffee pot: belly, spout, handle above or behind; the dotted lid is its own."""
    wide, high = _u(rng, 0.42, 0.62), _u(rng, 0.42, 0.85)
    neck = wide * _u(rng, 0.4, 0.7)
    bulge = _u(rng, 0.35, 0.8)
    right = [
        (neck, -high / 2),
        (wide * _u(rng, 0.72, 0.98), -high / 2 + high * (1 - bulge) * 0.55),
        (wide, high / 2 - high * (1 - bulge) * 0.5),
        (wide * _u(rng, 0.72, 0.95), high / 2),
    ]
    outline = polygon([*right, *[(-x, y) for x, y in reversed(right)]])
    body = spline(outline, steps=6) if rng.random() < 0.7 else outline
    spout = _spout(rng, wide, high)
    handle, hole = _kettle_handle(rng, wide, high, neck)
    dome = _u(rng, 0.14, 0.26)
    top = -high / 2
    edge, shoulder = neck * 1.12, neck * 0.75
    lid = spline(
        [
            (-edge, top + 0.05),
            (-shoulder, top - dome * 0.7),
            (0, top - dome),
            (shoulder, top - dome * 0.7),
            (edge, top + 0.05),
            (0, top + 0.1),
        ]
    )
    knob = ellipse(0, top - dome - 0.05, 0.07, _u(rng, 0.06, 0.1))
    foot = box(-wide * 0.72, high / 2 - 0.03, wide * 0.72, high / 2 + 0.07)
    feet = [layer([foot], "trim", shade=0.8)] if rng.random() < 0.5 else []
    return [
        layer([handle], "trim", holes=[hole]),
        layer([spout], shade=0.92),
        *feet,
        layer([body]),
        layer([knob], "trim", shade=0.9),
        layer([lid], "identity", "dots"),
    ]


def _spout(rng: Rng, wide: float, high: float) -> Points:
    low = high * _u(rng, -0.05, 0.3)
    reach = wide + _u(rng, 0.3, 0.55)
    rise = -high / 2 - _u(rng, -0.12, 0.25)
    if rng.random() < 0.6:
        points = [(wide * 0.7, low), (wide + 0.16, low - 0.05), (reach - 0.12, rise * 0.5), (reach, rise)]
        return limb(points, [0.17, 0.12, 0.08, 0.055])
    return polygon([(wide * 0.7, low), (wide * 0.75, -high * 0.42), (reach * 0.98, rise), (reach + 0.06, rise + 0.1)])


def _kettle_handle(rng: Rng, wide: float, high: float, neck: float) -> tuple[Points, Points]:
    if rng.random() < 0.5:
        rise = _u(rng, 0.5, 0.8)
        outer = ellipse(0, -high / 2 + 0.05, neck + _u(rng, 0.1, 0.22), rise)
        return ring(outer, 1 - 0.11 / max(neck, 0.3))
    size = high * _u(rng, 0.28, 0.42)
    outer = ellipse(-wide * 0.98, _u(rng, -0.1, 0.02), _u(rng, 0.26, 0.4), size, _u(rng, -0.3, 0.3))
    return ring(outer, _u(rng, 0.56, 0.68))


def cart(rng: Rng) -> Drawing:
    """Hand barrow to covered wagon: a tub on one or two checked wheels, with shafts and perhaps a load."""
    long, deep = _u(rng, 0.55, 0.8), _u(rng, 0.2, 0.34)
    flare = _u(rng, 0.0, 0.2)
    tub = polygon([(-long - flare, -deep), (long + flare * 0.6, -deep), (long, deep), (-long, deep)])
    wheels = 1 if rng.random() < 0.4 else 2
    radius = _u(rng, 0.34, 0.46) if wheels == 1 else _u(rng, 0.24, 0.36)
    places = [_u(rng, -0.15, 0.35) * long] if wheels == 1 else [-long * 0.62, long * 0.62]
    axle = deep + radius * _u(rng, 0.15, 0.5)
    found: Drawing = []
    if rng.random() < 0.6:
        found += _load(rng, long, deep)
    shaft_end = (long + _u(rng, 0.3, 0.6), _u(rng, -deep - 0.25, deep + 0.2))
    shaft = limb([(long * 0.3, deep * 0.6), (long + 0.1, deep * 0.4), shaft_end], [0.05, 0.045, 0.035])
    grip = limb([(shaft_end[0], shaft_end[1] - 0.1), (shaft_end[0], shaft_end[1] + 0.1)], [0.04, 0.04])
    found += [layer([shaft, grip], "trim", shade=0.85), layer([tub])]
    slats = int(rng.integers(0, 4))
    found += [
        layer([box(x - 0.035, -deep - 0.06, x + 0.035, deep)], "trim", shade=0.9)
        for x in np.linspace(-long * 0.8, long * 0.8, slats)
    ]
    if wheels == 1:
        found.append(layer([limb([(-long * 0.75, deep * 0.8), (-long * 0.8, axle + radius)], [0.05, 0.04])], "trim"))
    for x in places:
        rim, hole = ring(ellipse(x, axle, radius, radius), 0.8)
        found.append(layer([rim], "trim", shade=0.75, holes=[hole]))
        found.append(layer([ellipse(x, axle, radius * 0.82, radius * 0.82)], "identity", "checks"))
        found.append(layer([ellipse(x, axle, radius * 0.17, radius * 0.17)], "dark"))
    return found


def _load(rng: Rng, long: float, deep: float) -> Drawing:
    kind = rng.integers(3)
    if kind == 0:  # a canopy
        top = -deep - _u(rng, 0.35, 0.65)
        points = [(-long, -deep + 0.05), (-long * 0.95, top * 0.8), (0, top), (long * 0.95, top * 0.8), (long, -deep)]
        return [layer([spline([*points, (0, -deep + 0.1)])], "trim")]
    if kind == 1:  # a heap
        heap = [(-long * 0.9, -deep + 0.1), (-long * 0.5, -deep - 0.25), (0, -deep - _u(rng, 0.3, 0.5))]
        return [layer([bumpy(polygon([*heap, (long * 0.6, -deep - 0.2), (long * 0.9, -deep + 0.1)]), rng, 0.08, 14)])]
    crates, x = [], -long * 0.9
    while x < long * 0.7:
        side = _u(rng, 0.2, 0.42)
        crates.append(box(x, -deep - side, min(x + side, long), -deep + 0.05))
        x += side + 0.03
    return [layer([crate], "trim", shade=_u(rng, 0.8, 1.1)) for crate in crates]


def fish(rng: Rng) -> Drawing:
    """Slim or deep, straight or bent; the tail fin with chevrons is its own."""
    deep, bend = _u(rng, 0.2, 0.46), _u(rng, -0.22, 0.22)
    t = np.linspace(0, 1, 9)
    profile = deep * np.sin(np.pi * t ** _u(rng, 0.62, 0.85)) ** _u(rng, 0.75, 1.0)
    profile = np.maximum(profile, 0.075 * (t > 0.5))
    x = 0.85 - 1.55 * t
    spine = bend * np.cos(np.pi * t * 1.1)
    body = spline(np.stack([np.r_[x, x[::-1]], np.r_[spine - profile, (spine + profile)[::-1]]], 1), steps=5)
    root = np.array([x[-1] + 0.08, spine[-1]])
    size, fork = _u(rng, 0.34, 0.55), _u(rng, 0.0, 0.55)
    spread = _u(rng, 0.5, 0.8)
    fan = [
        (0.06, -0.05),
        (-size * 0.6, -size * spread),
        (-size * 1.05, -size * spread * 1.1),
        (-size * (1.0 - fork), 0),
        (-size * 1.05, size * spread * 1.1),
        (-size * 0.6, size * spread),
        (0.06, 0.05),
    ]
    tail = root + turn(spline(fan, steps=4), -bend * 0.8)
    place, fin = _u(rng, -0.15, 0.25), _u(rng, 0.14, 0.4)
    over = float(np.interp(place, x[::-1], (spine - profile)[::-1]))
    under = float(np.interp(place, x[::-1], (spine + profile)[::-1]))
    length = _u(rng, 0.25, 0.5)
    dorsal = spline([(place + 0.25, over + 0.12), (place, over - fin * 0.7), (place - length, over - fin)])
    dorsal = np.concatenate([dorsal, [(place - length * 0.8, over + 0.15)]])
    ventral = leaf(place - 0.05, under - 0.08, np.deg2rad(_u(rng, 105, 145)), fin + 0.12, 0.2)
    side = leaf(place + 0.16, spine[3] + deep * 0.2, np.deg2rad(_u(rng, 150, 215)), _u(rng, 0.25, 0.4), 0.2, 0.2)
    eye = (0.85 - _u(rng, 0.2, 0.27), spine[1] - deep * 0.15)
    return [
        layer([dorsal, ventral], "trim", shade=0.9),
        layer([tail], "identity", "chevrons"),
        layer([body]),
        layer([side], "trim"),
        layer([ellipse(*eye, 0.075, 0.075)], "trim", shade=1.5),
        layer([ellipse(*eye, 0.042, 0.042)], "dark"),
    ]


def plant(rng: Rng) -> Drawing:
    """Leaves, stalks or a cactus over a pot whose rim carries lozenges."""
    wide, tall = _u(rng, 0.24, 0.38), _u(rng, 0.3, 0.5)
    foot = wide * _u(rng, 0.55, 0.9)
    pot = polygon([(-wide, 0.1), (wide, 0.1), (foot, 0.1 + tall), (-foot, 0.1 + tall)])
    band = _u(rng, 0.2, 0.27)
    rim = box(-wide * 1.13, 0.0, wide * 1.13, band)
    grow = [_blades, _broad_leaves, _cactus, _fern, _tree][int(rng.integers(5))]
    return [*grow(rng), layer([pot], "trim", shade=0.9), layer([rim], "identity", "lozenges")]


def _blades(rng: Rng) -> Drawing:
    count = int(rng.integers(6, 11))
    angles = np.linspace(-2.75, -0.4, count) + rng.uniform(-0.12, 0.12, count)
    blades = [
        leaf(_u(rng, -0.1, 0.1), 0.08, a, _u(rng, 0.65, 1.1), _u(rng, 0.15, 0.23), 0.35 * np.cos(a)) for a in angles
    ]
    return [layer([b], shade=_u(rng, 0.72, 1.08)) for b in rng.permutation(np.array(blades))]


def _broad_leaves(rng: Rng) -> Drawing:
    found: Drawing = []
    for a in rng.permutation(np.linspace(-2.7, -0.45, int(rng.integers(4, 7)))):
        long = _u(rng, 0.45, 0.85)
        tip = np.array([np.cos(a), np.sin(a)]) * long
        found.append(layer([limb([(0, 0.1), tip * 0.5 + at(0, -0.05), tip], [0.035, 0.03, 0.025])], "trim", shade=0.8))
        blade = leaf(tip[0] * 0.9, tip[1] * 0.9, a + _u(rng, -0.4, 0.4), _u(rng, 0.45, 0.6), _u(rng, 0.32, 0.46))
        found.append(layer([blade], shade=_u(rng, 0.78, 1.08)))
    return found


def _cactus(rng: Rng) -> Drawing:
    high, thick = _u(rng, 0.75, 1.15), _u(rng, 0.14, 0.22)
    found = [layer([limb([(0, 0.1), (_u(rng, -0.05, 0.05), -high / 2), (0, -high)], [thick, thick, thick * 0.9])])]
    for side in rng.permutation([-1, 1])[: int(rng.integers(1, 3))]:
        base, out = -high * _u(rng, 0.3, 0.6), side * (thick + _u(rng, 0.2, 0.32))
        arm = [(0, base), (out * 0.8, base + 0.02), (out, base - 0.12), (out, base - _u(rng, 0.25, 0.45))]
        found.insert(0, layer([limb(arm, [thick * 0.6, thick * 0.6, thick * 0.6, thick * 0.5])], shade=0.9))
    return found


def _fern(rng: Rng) -> Drawing:
    found: Drawing = []
    for a in rng.permutation(np.linspace(-2.6, -0.55, int(rng.integers(3, 6)))):
        long = _u(rng, 0.75, 1.1)
        end = np.array([np.cos(a), np.sin(a)]) * long
        stem = spline([(0, 0.1), end * 0.6 + at(0, -0.1), end], closed=False)
        leaves = [limb(stem[::4], [0.025] * 2)]
        for k, (x, y) in enumerate(stem[5::3]):
            size = 0.3 * (1 - k / 10)
            leaves += [leaf(x, y, a + s * 1.0, size, size * 0.55) for s in (-1, 1)]
        found.append(layer(leaves, shade=_u(rng, 0.75, 1.05)))
    return found


def _tree(rng: Rng) -> Drawing:
    high, radius = _u(rng, 0.55, 0.8), _u(rng, 0.28, 0.45)
    trunk = limb([(0, 0.1), (_u(rng, -0.08, 0.08), -high / 2), (0, -high)], [0.06, 0.045, 0.04])
    crowns = [bumpy(ellipse(0, -high, radius, radius * _u(rng, 0.8, 1.2), count=12), rng, 0.12, 18)]
    if rng.random() < 0.5:
        side = rng.choice([-1, 1])
        crowns.append(bumpy(ellipse(side * radius * 0.8, -high * 0.6, radius * 0.55, radius * 0.5), rng, 0.12, 14))
    return [layer([trunk], "trim"), *[layer([crown], shade=_u(rng, 0.85, 1.05)) for crown in crowns]]


TARGET_SHAPES: Mapping[str, Callable[[Rng], Drawing]] = MappingProxyType(
    {"grazer": grazer, "kettle": kettle, "cart": cart, "fish": fish, "plant": plant}
)
