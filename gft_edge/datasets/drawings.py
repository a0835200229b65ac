"""Owns the demo's data set: procedurally drawn aircraft that differ only in local parts."""

import cmath
import colorsys
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

Point = tuple[float, float, float]
Pixel = tuple[float, float]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Parts:
    """The local parts that tell one class from another; the body is the same for all."""

    wing: Literal["straight", "swept", "delta"]
    engines: Literal["inside", "two-pods", "four-pods", "rear-pods", "two-propellers"]
    fins: Literal[1, 2]
    tailplane: Literal["none", "low", "high"]
    nose: Literal["round", "pointed", "propeller"]
    canards: bool = False


AIRCRAFT: Mapping[str, Parts] = {
    "twinjet-low-tail": Parts("swept", "two-pods", 1, "low", "round"),
    "fourjet-low-tail": Parts("swept", "four-pods", 1, "low", "round"),
    "twinjet-t-tail": Parts("swept", "rear-pods", 1, "high", "round"),
    "twinjet-twin-fin": Parts("swept", "rear-pods", 2, "low", "round"),
    "twinprop-low-tail": Parts("straight", "two-propellers", 1, "low", "round"),
    "twinprop-t-tail": Parts("straight", "two-propellers", 1, "high", "round"),
    "singleprop-low-tail": Parts("straight", "inside", 1, "low", "propeller"),
    "delta-single-fin": Parts("delta", "inside", 1, "none", "pointed"),
    "delta-twin-fin": Parts("delta", "inside", 2, "none", "pointed"),
    "delta-canard": Parts("delta", "inside", 1, "none", "pointed", canards=True),
}
CLASSES: tuple[str, ...] = tuple(AIRCRAFT)


class _Panel(NamedTuple):
    """A flat part: its front and back x at the root and at the tip, and how far out the tip is.

    Body axes throughout: x runs from the tail (-1) to the nose (1), y sideways, z up.
    """

    root: tuple[float, float]
    tip: tuple[float, float]
    reach: float


_WINGS = {
    "straight": _Panel((0.24, -0.14), (0.14, -0.08), 0.95),
    "swept": _Panel((0.34, -0.14), (-0.36, -0.54), 0.92),
    "delta": _Panel((0.36, -0.74), (-0.58, -0.74), 0.68),
}
_TAILPLANES = {
    "low": (_Panel((-0.68, -0.94), (-0.86, -1.02), 0.42), 0.0),
    "high": (_Panel((-0.82, -1.08), (-0.98, -1.14), 0.42), 0.46),
}
_CANARD = _Panel((0.62, 0.40), (0.44, 0.32), 0.38)
_COCKPIT = ((0.74, 0.07, 0.09), (0.60, 0.06, 0.12), (0.60, -0.06, 0.12), (0.74, -0.07, 0.09))
# A fin's corners as x, its sideways lean where there are two, and z.
_FIN = ((-0.56, 1.0, 0.04), (-0.88, 1.2, 0.46), (-1.08, 1.2, 0.46), (-0.94, 1.0, 0.04))
_ENGINE_PLACES: Mapping[str, tuple[float, ...]] = {
    "inside": (),
    "two-pods": (0.36,),
    "four-pods": (0.32, 0.60),
    "rear-pods": (0.20,),
    "two-propellers": (0.38,),
}
# Bodies of revolution, as (x, radius) from front to back.
_NOSES = {
    "round": ((1.0, 0.03), (0.98, 0.06), (0.93, 0.09), (0.85, 0.11), (0.75, 0.12)),
    "pointed": ((1.14, 0.004), (0.9, 0.05), (0.7, 0.085), (0.5, 0.115)),
    "propeller": ((0.92, 0.02), (0.87, 0.045), (0.84, 0.09), (0.7, 0.12)),
}
_AFT = ((-0.4, 0.12), (-0.75, 0.085), (-1.0, 0.035))
_JET = ((0.2, 0.07), (0.13, 0.085), (-0.06, 0.08), (-0.18, 0.055))
_PROPELLER_CASE = ((0.2, 0.03), (0.13, 0.065), (-0.2, 0.06), (-0.4, 0.02))
_OVERSAMPLING = 3


class _Livery(NamedTuple):
    body: Colour
    wing: Colour
    fin: Colour
    engine: Colour
    blade: float


@dataclass(frozen=True)
class _Sheet:
    """What every part needs to be drawn: a canvas, the pose, and lengths in pixels."""

    canvas: ImageDraw.ImageDraw
    project: Callable[[Point], Pixel]
    unit_px: float
    line_px: int

    def polygon(self, corners: Sequence[Point], colour: Colour) -> None:
        """Fill a polygon given in body axes and outline it in a darker tone."""
        flat = [self.project(corner) for corner in corners]
        self.canvas.polygon(flat, colour, _shade(colour, 0.4), self.line_px)


def draw(name: str, rng: random.Random, size_px: int) -> Image.Image:
    """Draw one aircraft of class `name` as a square RGB image of `size_px` pixels a side.

    Pose, colours, background and noise come from `rng` alone and never from the class, so
    the same state of `rng` gives the same pixels.
    """
    large_px = size_px * _OVERSAMPLING
    image = _background(rng, size_px).resize((large_px, large_px), Image.Resampling.BILINEAR)
    _aircraft(_posed_sheet(image, rng), AIRCRAFT[name], _livery(rng))
    image = image.reduce(_OVERSAMPLING)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 0.5)))
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(1, 5), image.size)
    pixels = np.asarray(image, dtype=np.float32) + noise[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_drawings(folder: Path, per_class: Mapping[str, int], size_px: int, seed: int) -> None:
    """Write `folder`/<split>/<class>/<0000>.png for every split and count in `per_class`.

    Each image has its own generator, seeded by seed, split, class and index: the files do
    not depend on the order of drawing, and no two splits share a drawing.
    """
    for split, count in per_class.items():
        for name in CLASSES:
            target = folder / split / name
            target.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                rng = random.Random(f"{seed}/{split}/{name}/{index}")
                draw(name, rng, size_px).save(target / f"{index:04d}.png", compress_level=1)


def _posed_sheet(image: Image.Image, rng: random.Random) -> _Sheet:
    """Pick an attitude: the nose to the right and towards a viewer who looks from above."""
    yaw, bank = math.radians(rng.uniform(-40, -15)), math.radians(rng.uniform(-6, 6))
    elevation, tilt = math.radians(rng.uniform(45, 55)), math.radians(rng.uniform(2, 14))
    unit_px = image.width * rng.uniform(0.42, 0.47)
    centre_x, centre_y = (image.width * rng.uniform(0.48, 0.52) for _ in "xy")

    def project(point: Point) -> Pixel:
        x, y, z = point
        banked = complex(y, z) * cmath.rect(1, bank)
        level = complex(x, banked.real) * cmath.rect(1, yaw)
        up = banked.imag * math.cos(elevation) + level.imag * math.sin(elevation)
        seen = complex(level.real, up) * cmath.rect(unit_px, tilt)
        return centre_x + seen.real, centre_y - seen.imag

    return _Sheet(ImageDraw.Draw(image, "RGBA"), project, unit_px, max(1, image.width // 200))


def _aircraft(sheet: _Sheet, parts: Parts, livery: _Livery) -> None:
    """Draw the parts, those that can be hidden before those that hide them."""
    far = _ENGINE_PLACES[parts.engines][::-1]
    near = tuple(-y for y in far[::-1])
    under_wing = parts.engines in ("two-pods", "four-pods")

    for y in far + near if under_wing else ():
        _engine(sheet, parts, y, livery)
    _pair(sheet, _WINGS[parts.wing], -0.05, livery.wing)
    if parts.tailplane == "low":
        _pair(sheet, *_TAILPLANES["low"], livery.wing)
    if parts.canards:
        _pair(sheet, _CANARD, 0.04, livery.wing)
    for y in () if under_wing else far:
        _engine(sheet, parts, y, livery)
    _round_body(sheet, (*_NOSES[parts.nose], *_AFT), 0.0, 0.0, livery.body)
    sheet.polygon(_COCKPIT, (52, 64, 84))
    if parts.nose == "propeller":
        _propeller(sheet, (0.92, 0.0, 0.0), livery.blade)
    for y in (0.0,) if parts.fins == 1 else (0.22, -0.22):
        sheet.polygon([(x, y * lean, z) for x, lean, z in _FIN], livery.fin)
    if parts.tailplane == "high":
        _pair(sheet, *_TAILPLANES["high"], livery.wing)
    for y in () if under_wing else near:
        _engine(sheet, parts, y, livery)


def _pair(sheet: _Sheet, panel: _Panel, z: float, colour: Colour) -> None:
    """Draw a panel to both sides at height `z`, slightly raised at the tips."""
    for side, light in ((1, 1.0), (-1, 0.9)):
        root_y, tip_y, tip_z = 0.04 * side, panel.reach * side, z + 0.05 * panel.reach
        root = [(x, root_y, z) for x in panel.root]
        tip = [(x, tip_y, tip_z) for x in panel.tip]
        sheet.polygon([root[0], tip[0], tip[1], root[1]], _shade(colour, light))


def _engine(sheet: _Sheet, parts: Parts, y: float, livery: _Livery) -> None:
    """Draw the engine at the side `y`: at the tail, or just ahead of the wing's front edge."""
    wing = _WINGS[parts.wing]
    edge = wing.root[0] + (wing.tip[0] - wing.root[0]) * abs(y) / wing.reach
    if parts.engines == "two-propellers":
        _round_body(sheet, [(edge + x, r) for x, r in _PROPELLER_CASE], y, 0.0, livery.engine)
        _propeller(sheet, (edge + 0.2, y, 0.0), livery.blade)
        return
    front, z = (-0.5, 0.08) if parts.engines == "rear-pods" else (edge, -0.12)
    _round_body(sheet, [(front + x, r) for x, r in _JET], y, z, livery.engine)
    sheet.polygon(_circle((front + 0.2, y, z), 0.06), (38, 40, 46))


def _round_body(
    sheet: _Sheet, stations: Sequence[tuple[float, float]], y: float, z: float, colour: Colour
) -> None:
    """Draw a body of revolution along x at `y` and `z`, lit from above."""
    axis = [sheet.project((x, y, z)) for x, _ in stations]
    length_px = math.dist(axis[0], axis[-1])
    up_x = (axis[0][1] - axis[-1][1]) / length_px * sheet.unit_px
    up_y = (axis[-1][0] - axis[0][0]) / length_px * sheet.unit_px

    def strip(low: float, high: float) -> list[Pixel]:
        lines = [zip(axis, stations, strict=True), zip(axis[::-1], stations[::-1], strict=True)]
        return [
            (px + side * radius * up_x, py + side * radius * up_y)
            for side, line in zip((low, high), lines, strict=True)
            for (px, py), (_, radius) in line
        ]

    sheet.canvas.polygon(strip(-1, 1), colour, _shade(colour, 0.4), sheet.line_px)
    sheet.canvas.polygon(strip(-0.85, -0.35), _shade(colour, 0.78))
    sheet.canvas.polygon(strip(0.25, 0.7), _shade(colour, 1.15))


def _propeller(sheet: _Sheet, hub: Point, blade: float) -> None:
    """Draw a two-bladed propeller at the angle `blade` in the blurred disc that it sweeps."""
    disc = [sheet.project(p) for p in _circle(hub, 0.2)]
    sheet.canvas.polygon(disc, (240, 240, 240, 110), (40, 40, 40, 200), sheet.line_px)
    y, z = 0.19 * math.cos(blade), 0.19 * math.sin(blade)
    tips = [sheet.project((hub[0], hub[1] + s * y, hub[2] + s * z)) for s in (-1, 1)]
    sheet.canvas.line(tips, (30, 30, 30), 3 * sheet.line_px)


def _circle(centre: Point, radius: float) -> list[Point]:
    """Return a circle across the x axis."""
    x, y, z = centre
    angles = [math.tau * step / 16 for step in range(16)]
    return [(x, y + radius * math.cos(a), z + radius * math.sin(a)) for a in angles]


def _livery(rng: random.Random) -> _Livery:
    # Light paint on darker ground: with either polarity, three minutes of training find no shape.
    body, wing, fin, engine = (
        _hsv(rng.random(), rng.uniform(0.0, 0.35), rng.uniform(0.85, 1.0)) for _ in range(4)
    )
    return _Livery(body, wing, fin, engine, blade=rng.uniform(0, math.pi))


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _shade(colour: Colour, light: float) -> Colour:
    red, green, blue = (min(255, round(part * light)) for part in colour)
    return red, green, blue


def _background(rng: random.Random, size_px: int) -> Image.Image:
    """Draw clouds over a blue sky, or dark blobs on strips of land, all out of focus."""
    land = rng.random() < 0.5
    hue = rng.uniform(0.08, 0.38) if land else rng.uniform(0.5, 0.66)
    top = _hsv(hue, rng.uniform(0.35, 0.7), rng.uniform(0.35, 0.6))
    bottom = _hsv(hue + rng.uniform(-0.06, 0.06), rng.uniform(0.3, 0.6), rng.uniform(0.45, 0.7))
    ramp = Image.linear_gradient("L").resize((size_px, size_px))
    image = ImageOps.colorize(ramp, top, bottom)
    canvas = ImageDraw.Draw(image, "RGBA")
    slope_px = rng.uniform(-0.5, 0.5) * size_px
    for _ in range(rng.randint(3, 6) if land else 0):
        y, depth = rng.uniform(-0.2, 1.1) * size_px, rng.uniform(0.08, 0.3) * size_px
        tone = _hsv(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.3, 0.6), rng.uniform(0.3, 0.65))
        end = y + slope_px
        strip = ((0, y), (size_px, end), (size_px, end + depth), (0, y + depth))
        canvas.polygon(strip, (*tone, 150))
    for _ in range(rng.randint(4, 10)):
        x, y = rng.random() * size_px, rng.random() * size_px
        width, height = rng.uniform(0.08, 0.3) * size_px, rng.uniform(0.04, 0.12) * size_px
        tone = _hsv(hue, 0.5, rng.uniform(0.25, 0.5)) if land else (255, 255, 255)
        canvas.ellipse((x - width, y - height, x + width, y + height), (*tone, rng.randint(30, 80)))
    return image.filter(ImageFilter.GaussianBlur(size_px / 50))
