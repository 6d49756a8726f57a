"""The demo's six auxiliary classes as drawings: disjoint from the target classes, painted with the same materials."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from artifacts.demo.geometry import Layer, Points, Rng, at, box, ellipse, layer, leaf, limb, polygon, ring, spline, turn

Drawing = list[Layer]


def _u(rng: Rng, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def heron(rng: Rng) -> Drawing:
    """Long legs, a bent neck, a long beak; the scaled wing is its own."""
    long, high, legs = _u(rng, 0.34, 0.5), _u(rng, 0.17, 0.28), _u(rng, 0.45, 0.85)
    tilt = _u(rng, -0.35, 0.15)
    body = turn(ellipse(0, 0, long, high), tilt)
    tail = turn(leaf(-long * 0.75, 0, np.pi + _u(rng, -0.3, 0.3), _u(rng, 0.25, 0.5), high * 1.1), tilt)
    up = _u(rng, 0.45, 0.85)
    root = turn(polygon((long * 0.75, -high * 0.2)), tilt)[0]
    head = root + at(_u(rng, 0.0, 0.35), -up)
    sway = _u(rng, 0.1, 0.28)
    neck_points = [root - at(0.1, 0), root + at(sway, -up * 0.3), root + at(-sway * 0.6, -up * 0.7), head]
    neck = limb(neck_points, [high * 0.6, 0.09, 0.06, 0.07])
    dip = np.deg2rad(_u(rng, -10, 40))
    beak = leaf(head[0] + 0.03, head[1], dip, _u(rng, 0.3, 0.5), 0.11)
    crest = leaf(head[0], head[1] - 0.03, np.pi - _u(rng, -0.3, 0.5), _u(rng, 0.1, 0.3), 0.07)
    wing = turn(leaf(long * 0.55, -high * 0.15, np.pi - 0.12, long * 1.5, high * 1.15, -0.1), tilt)
    standing = _u(rng, -0.08, 0.25)
    feet = []
    for side, bend in ((-0.06, standing), (0.08, _u(rng, -0.2, 0.1))):
        foot = (side + bend * 0.5, high + legs)
        feet.append(limb([(side, high * 0.5), (side + bend, high + legs * 0.45), foot], [0.055, 0.035, 0.028]))
        feet.append(leaf(foot[0] - 0.05, foot[1], _u(rng, -0.1, 0.25), 0.22, 0.06))
    return [
        layer(feet, "trim", shade=0.8),
        layer([tail], shade=0.8),
        layer([neck, ellipse(head[0], head[1], 0.1, 0.085)], shade=0.97),
        layer([body]),
        layer([beak, crest], "trim", shade=1.1),
        layer([wing], "identity", "scales"),
        layer([ellipse(head[0] + 0.03, head[1] - 0.02, 0.025, 0.025)], "dark"),
    ]


def chair(rng: Rng) -> Drawing:
    """Stool with a back to armchair; the plaid seat is its own."""
    wide, depth = _u(rng, 0.38, 0.55), _u(rng, 0.12, 0.26)
    back, legs, lean = _u(rng, 0.5, 0.95), _u(rng, 0.4, 0.7), _u(rng, -0.06, 0.16)
    splay, thick = _u(rng, 0.0, 0.14), _u(rng, 0.045, 0.08)
    stands = [
        limb([(x * wide, 0), (x * (wide + splay), legs + dy)], [thick, thick * 0.7])
        for x, dy in ((-0.85, 0), (0.85, 0))
    ]
    behind = [
        limb([(x * wide + lean, -0.05), (x * (wide + splay) + lean, legs - depth)], [thick * 0.9, thick * 0.6])
        for x in (-0.8, 0.8)
    ]
    top = [(-wide * 0.9, 0.0), (-wide * 0.9 + lean, -back), (wide * 0.9 + lean, -back), (wide * 0.9, 0.0)]
    panel = polygon(top) if rng.random() < 0.5 else spline([*top, (0, 0.02)])
    slots: list[Points] = []
    if rng.random() < 0.6:
        slots = [
            polygon([(x - 0.06, -0.12), (x - 0.06 + lean * 0.8, -back * 0.82), (x + 0.06 + lean * 0.8, -back * 0.82)])
            if rng.random() < 0.2
            else box(x - 0.055 + lean * 0.5, -back * 0.8, x + 0.055 + lean * 0.5, -0.14)
            for x in np.linspace(-wide * 0.55, wide * 0.55, int(rng.integers(2, 4)))
        ]
    seat = polygon(
        [(-wide * 0.92, -depth), (wide * 0.92, -depth), (wide * 1.08, depth * 0.6), (-wide * 1.08, depth * 0.6)]
    )
    front = box(-wide * 1.08, depth * 0.5, wide * 1.08, depth * 0.6 + 0.07)
    arms = []
    if rng.random() < 0.4:
        arms = [
            layer([limb([(s * wide * 0.95, 0), (s * wide * 1.1, -0.3), (s * wide * 0.9, -0.36)], [0.06] * 3)], "trim")
            for s in (-1, 1)
        ]
    return [
        layer(behind, shade=0.65),
        layer([panel], holes=slots),
        layer(stands, shade=0.92),
        layer([front], shade=0.8),
        layer([seat], "identity", "plaid"),
        *arms,
    ]


def lamp(rng: Rng) -> Drawing:
    """Desk, table or floor lamp; the ringed shade is its own."""
    high, wide = _u(rng, 0.5, 1.1), _u(rng, 0.28, 0.48)
    base = _u(rng, 0.2, 0.36)
    top = wide * _u(rng, 0.35, 0.8)
    tall = _u(rng, 0.32, 0.5)
    head = np.array([0.0, 0.0])
    tilt = 0.0
    if rng.random() < 0.4:  # an arm with a joint
        elbow = np.array([_u(rng, -0.35, -0.15), -high * 0.55])
        head = np.array([_u(rng, 0.15, 0.45), -high])
        tilt = _u(rng, -0.7, -0.1)
        pole = [limb([(0, 0), elbow], [0.045, 0.04]), limb([elbow, head], [0.04, 0.035])]
        pole.append(ellipse(elbow[0], elbow[1], 0.075, 0.075))
    elif rng.random() < 0.5:  # a belly
        head = np.array([0.0, -high])
        bulge = _u(rng, 0.16, 0.28)
        pole = [
            spline([(-0.05, -high), (-bulge, -high * 0.45), (-0.1, 0), (0.1, 0), (bulge, -high * 0.45), (0.05, -high)])
        ]
    else:
        head = np.array([0.0, -high])
        pole = [limb([(0, 0), (_u(rng, -0.05, 0.05), -high / 2), head], [0.05, 0.035, 0.035])]
    shade = polygon([(-top, -tall), (top, -tall), (wide, 0.12), (-wide, 0.12)])
    shade = turn(shade, tilt) + head
    bulb = turn(polygon((0, 0.12)), tilt)[0] + head
    foot = spline([(-base, 0.06), (-base * 0.8, -0.03), (0, -0.09), (base * 0.8, -0.03), (base, 0.06), (0, 0.09)])
    return [
        layer([ellipse(bulb[0], bulb[1], 0.1, 0.1)], "trim", shade=1.35),
        layer(pole, shade=0.92),
        layer([foot]),
        layer([shade], "identity", "waves"),
    ]


def crab(rng: Rng) -> Drawing:
    """A wide shell on eight legs; the ringed claws are its own."""
    wide, high = _u(rng, 0.42, 0.58), _u(rng, 0.26, 0.4)
    shell = spline(
        [
            (-wide, -0.05),
            (-wide * 0.6, -high),
            (0, -high * _u(rng, 0.85, 1.1)),
            (wide * 0.6, -high),
            (wide, -0.05),
            (wide * 0.6, high * 0.8),
            (0, high),
            (-wide * 0.6, high * 0.8),
        ]
    )
    legs = []
    spread = _u(rng, 0.25, 0.5)
    for side in (-1, 1):
        for k in range(int(rng.integers(3, 5))):
            x, y = side * wide * (0.85 - 0.17 * k), high * (0.2 + 0.17 * k)
            knee = (x + side * (spread - 0.05 * k), y - 0.06 + _u(rng, -0.06, 0.06))
            legs.append(limb([(x, y), knee, (knee[0] + side * 0.06, y + _u(rng, 0.25, 0.4))], [0.055, 0.045, 0.015]))
    arms, claws = [], []
    for side in (-1, 1):
        reach = _u(rng, 0.25, 0.45)
        wrist = np.array([side * (wide + reach * 0.5), -high * 0.6 - reach])
        arms.append(
            limb([(side * wide * 0.75, -high * 0.4), (side * (wide + reach * 0.6), -high * 0.4), wrist], [0.07] * 3)
        )
        size, open_by, way = _u(rng, 0.16, 0.3), _u(rng, 0.2, 0.5), -np.pi / 2 - side * _u(rng, -0.1, 0.7)
        claws.append(ellipse(wrist[0], wrist[1], size * 0.62, size * 0.62))
        claws += [leaf(wrist[0], wrist[1], way + s * open_by, size * 1.7, size * 0.75) for s in (-1, 1)]
    eyes = [limb([(s * wide * 0.22, -high * 0.8), (s * wide * 0.26, -high - 0.13)], [0.03, 0.035]) for s in (-1, 1)]
    balls = [ellipse(s * wide * 0.26, -high - 0.14, 0.05, 0.05) for s in (-1, 1)]
    return [
        layer(legs, "trim", shade=0.8),
        layer(arms, shade=0.85),
        layer(eyes, "trim"),
        layer([shell]),
        layer(claws, "identity", "rings"),
        layer(balls, "dark"),
    ]


def mushroom(rng: Rng) -> Drawing:
    """One to three stems; the spotted cap is its own."""
    found: Drawing = []
    count = int(rng.integers(1, 4))
    places = sorted(rng.uniform(-0.5, 0.5, count)) if count > 1 else [0.0]
    for place in rng.permutation(np.array(places)):
        scale = 1.0 if count == 1 else _u(rng, 0.5, 0.85)
        high, wide = _u(rng, 0.5, 1.0) * scale, _u(rng, 0.3, 0.55) * scale
        lean, thick = _u(rng, -0.15, 0.15), _u(rng, 0.11, 0.2) * scale
        top = np.array([place + lean, -high])
        stem = limb([(place, 0), (place + lean * 0.3, -high / 2), top], [thick * 1.35, thick, thick * 0.85])
        cap_high = wide * _u(rng, 0.55, 1.15)
        tilt = lean * 1.2
        brim = _u(rng, 0.02, 0.16)
        cap = spline(
            [
                (-wide, brim),
                (-wide * 0.8, -cap_high * 0.6),
                (0, -cap_high),
                (wide * 0.8, -cap_high * 0.6),
                (wide, brim),
                (wide * 0.3, brim * 0.6),
                (-wide * 0.3, brim * 0.6),
            ]
        )
        gills = turn(ellipse(0, brim * 0.9, wide * 0.88, 0.1 * scale), tilt) + top
        skirt = ellipse(place + lean * 0.7, -high * 0.72, thick * 1.6, thick * 0.45)
        found += [layer([stem]), layer([skirt], "trim"), layer([gills], "trim", shade=0.62)]
        found.append(
            layer([turn(cap, tilt) + top], "identity" if scale == 1.0 or place == places[0] else "body", "spots")
        )
    tufts = [
        leaf(_u(rng, -0.3, 0.3), 0.05, -np.pi / 2 + _u(rng, -0.6, 0.6), _u(rng, 0.12, 0.25), 0.06) for _ in range(4)
    ]
    return [*found, layer(tufts, "trim", shade=0.8)]


def plane(rng: Rng) -> Drawing:
    """Glider to jet, seen from the side and below; the tail with a cross is its own."""
    thick, long = _u(rng, 0.1, 0.2), 1.0
    droop = _u(rng, 0.0, 0.06)
    body = spline(
        [
            (long, 0.02),
            (long * 0.75, -thick * 0.85),
            (0.1, -thick),
            (-long * 0.9, -thick * 0.55 - droop),
            (-long, -thick * 0.2 - droop),
            (-long * 0.5, thick * 0.5),
            (0.3, thick * 0.95),
            (long * 0.8, thick * 0.6),
        ]
    )
    sweep, span, root = _u(rng, 0.05, 0.55), _u(rng, 0.4, 0.8), _u(rng, 0.26, 0.42)
    near = polygon([(root / 2, 0.03), (-root / 2, 0.05), (-root * 0.4 - sweep, span), (root * 0.05 - sweep, span)])
    far = polygon([(root / 2 + 0.08, -0.02), (-root / 3, -0.02), (-root * 0.2 - sweep * 0.7, -span * 0.62)])
    far = np.concatenate([far, [(root * 0.2 - sweep * 0.7, -span * 0.62)]])
    fin_high = _u(rng, 0.34, 0.55)
    fin = polygon(
        [(-0.5, -thick * 0.6), (-0.82, -thick - fin_high), (-1.06, -thick - fin_high), (-0.98, -thick * 0.3 - droop)]
    )
    small = polygon([(-0.72, -0.03), (-0.94, -0.02), (-1.12, _u(rng, 0.12, 0.24)), (-0.98, 0.2)])
    engines: Drawing = []
    kind = rng.integers(3)
    if kind == 0:
        engines = [layer([ellipse(0.02 - sweep * 0.3, span * f, 0.16, 0.075)], "trim") for f in (0.45, 0.75)]
    elif kind == 1:
        size = _u(rng, 0.22, 0.38)
        engines = [layer([leaf(long, 0, s * np.pi / 2, size, 0.1) for s in (-1, 1)], "trim", shade=1.1)]
        engines.append(layer([ellipse(long, 0.02, 0.07, 0.07)], "trim", shade=0.7))
    windows = [ellipse(x, -thick * 0.35, 0.042, 0.045) for x in np.linspace(-0.2, 0.55, int(rng.integers(3, 6)))]
    if rng.random() < 0.4:
        rim, hole = ring(ellipse(0.5, -thick * 0.9, 0.24, 0.14), 0.5)
        windows = []
        engines.append(layer([rim], "trim", shade=1.2, holes=[hole]))
    return [
        layer([far], shade=0.68),
        layer([body]),
        layer(windows, "dark"),
        layer([fin], "identity", "cross"),
        *engines,
        layer([small], shade=0.85),
        layer([near], shade=0.95),
    ]


AUX_SHAPES: Mapping[str, Callable[[Rng], Drawing]] = MappingProxyType(
    {"heron": heron, "chair": chair, "lamp": lamp, "crab": crab, "mushroom": mushroom, "plane": plane}
)
