"""A street of the toy city: two rows of houses, what stands in the way, and its pictures.

Street coordinates are metres: x along the street, y to the left of it, z up; (0, 0, 0) is on the
middle of the road. `Street.to_world` turns them into east, north, up.
"""

from dataclasses import dataclass

import numpy as np

from toy_city.facades import paint_facade, paint_side
from toy_city.ground import paint_ground
from toy_city.light import develop, draw_light, make_cloud_map
from toy_city.scene import Camera, Flat, Painter, Plane
from toy_city.style import draw_style, vary_style
from toy_city.traffic import draw_occluders

HALF_WIDTH = 8.5  # metres from the middle of the road to the façades
KERB = 5.0
MARGIN = 40.0  # metres of houses before and behind the stretch in which cameras stand
DEPTH = 9.0  # metres from the front of a house to its back


@dataclass(frozen=True)
class Conditions:
    """How much pictures may differ: the hours, and 0 … 1 for the camera and for what hides."""

    first_hour: float
    last_hour: float
    wear: float
    traffic: float


@dataclass(frozen=True)
class House:
    """A house between x = `start` and `stop` on the left (side 1) or right (−1) of the street."""

    start: float
    stop: float
    side: int
    eaves: float
    walls: list[Plane]
    front: Plane


class Street:
    """A street of `length` metres from `origin` (east, north) towards `axis`, 0 or 90 degrees."""

    def __init__(
        self, origin: tuple[float, float], axis: int, length: float, scale: float, seed: list[int]
    ):
        rng = np.random.default_rng(seed)
        self.origin, self.axis, self.length = origin, axis, length
        along = np.array([0.0, 1.0, 0.0]) if axis == 0 else np.array([1.0, 0.0, 0.0])
        up = np.array([0.0, 0.0, 1.0])
        self.frame = np.stack([along, np.cross(up, along), up])  # rows: x, y, z in the world
        self.houses = [house for side in (1, -1) for house in self._build_row(side, scale, rng)]
        self.ends = self._build_ends(scale, rng)
        self.ground = self._pave(min(scale, 20.0), rng)
        self.clouds = make_cloud_map(rng)

    def to_world(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) world points of (N, 3) street points."""
        return np.asarray(points, float) @ self.frame + (*self.origin, 0.0)

    def to_street(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) street points of (N, 3) world points."""
        return (np.asarray(points, float) - (*self.origin, 0.0)) @ self.frame.T

    def picture(
        self, camera: Camera, hour: float, conditions: Conditions, rng: np.random.Generator
    ) -> np.ndarray:
        """A photo, (height, width, 3) uint8 RGB: the street, what hides it, the camera's faults."""
        light = draw_light(hour, rng)
        painter = Painter(camera, light, np.roll(self.clouds, rng.integers(0, 512, 2), (0, 1)))
        self.paint(painter)
        position = self.to_street(np.array([camera.position]))[0]
        forward = self.frame @ camera.rotation()[2]
        flats = draw_occluders(position, forward, conditions.traffic, KERB, HALF_WIDTH, rng)
        painter.paint_flats(self._to_world(flats))
        return develop(painter.picture(), conditions.wear, rng)

    def paint(self, painter: Painter) -> None:
        """Paints all that stays: ground, closing façades, houses from far to near, shadows."""
        x = self.to_street(np.array([painter.camera.position]))[0, 0]
        houses = sorted(self.houses, key=lambda house: -max(house.start - x, x - house.stop, 0))
        walls = [plane for house in houses for plane in (*house.walls, house.front)]
        painter.paint_planes([*self.ground, *self.ends, *walls])
        for polygons, normal in self._shadows(painter.light.sun):
            painter.darken(polygons, normal)

    def _to_world(self, flats: list[Flat]) -> list[Flat]:
        """Flats in street coordinates, all at once."""
        if not flats:
            return []
        points = self.to_world(np.concatenate([flat.polygon for flat in flats]))
        polygons = np.split(points, np.cumsum([len(flat.polygon) for flat in flats])[:-1])
        return [Flat(polygon, flat.colour) for polygon, flat in zip(polygons, flats, strict=True)]

    def _wall(
        self,
        texture: np.ndarray,
        corner: tuple[float, float],
        right: tuple[float, float],
        scale: float,
        outline: np.ndarray | None = None,
    ) -> Plane:
        """An upright plane whose lower left corner, as seen, is at (x, y) on the ground."""
        height = texture.shape[0] / scale
        position = self.to_world(np.array([(*corner, height)]))[0]
        across, down = np.array([(*right, 0.0), (0.0, 0.0, -1.0)]) @ self.frame / scale
        return Plane(texture, position, across, down, outline)

    def _build_row(self, side: int, scale: float, rng: np.random.Generator) -> list[House]:
        """Houses side by side; two to four neighbours share a style."""
        houses: list[House] = []
        x, same = -MARGIN, 0
        style = draw_style(rng)
        while x < self.length + MARGIN:
            style = vary_style(style, rng) if same else draw_style(rng)
            same = same - 1 if same else int(rng.integers(1, 4))
            facade = paint_facade(style, int(rng.integers(3, 7)), scale, rng)
            h, w = facade.texture.shape[:2]
            stop = x + w / scale
            outline = facade.outline * (scale, -scale) + (0, h)
            y, left = side * HALF_WIDTH, x if side > 0 else stop
            front = self._wall(facade.texture, (left, y), (side, 0), scale, outline)
            blind = paint_side(style, DEPTH, facade.eaves, scale / 2, rng)
            near, far = min(y, y + side * DEPTH), max(y, y + side * DEPTH)
            walls = [
                self._wall(blind, (x, far), (0, -1), scale / 2),
                self._wall(blind, (stop, near), (0, 1), scale / 2),
            ]
            houses.append(House(x, stop, side, facade.eaves, walls, front))
            x = stop
        return houses

    def _build_ends(self, scale: float, rng: np.random.Generator) -> list[Plane]:
        """The façades of the cross streets that close the view at both ends."""
        ends = []
        for x, right in ((-MARGIN, 1), (max(house.stop for house in self.houses), -1)):
            style = draw_style(rng)
            bays = int(2 * HALF_WIDTH / style.bay) + 3
            facade = paint_facade(style, bays, scale, rng)
            h, w = facade.texture.shape[:2]
            outline = facade.outline * (scale, -scale) + (0, h)
            corner = (x, -right * w / scale / 2)
            ends.append(self._wall(facade.texture, corner, (0, right), scale, outline))
        return ends

    def _pave(self, scale: float, rng: np.random.Generator) -> list[Plane]:
        """The ground in pieces of 10 m, each reduced as its own distance asks for."""
        last = max(house.stop for house in self.houses)
        texture = paint_ground(last + MARGIN, 2 * HALF_WIDTH, KERB, scale, rng)
        across, down = np.array([(1.0, 0, 0), (0, -1.0, 0)]) @ self.frame / scale
        pieces, step = [], round(10 * scale)
        for start in range(0, texture.shape[1], step):
            corner = self.to_world(np.array([(start / scale - MARGIN, HALF_WIDTH, 0)]))[0]
            piece = np.ascontiguousarray(texture[:, start : start + step])
            pieces.append(Plane(piece, corner, across, down))
        return pieces

    def _shadows(self, sun: np.ndarray) -> list[tuple[list[np.ndarray], np.ndarray]]:
        """Shadows of the row before the sun, as world polygons and the normal they lie on.

        They fall on the ground and, if the sun is low, on the row across the street.
        """
        sun_x, sun_y, sun_z = self.frame @ sun
        if abs(sun_y) < 0.1 or sun_z <= 0.02:
            return []
        side = 1 if sun_y > 0 else -1
        y = side * HALF_WIDTH
        slip, drop = -sun_x / abs(sun_y), sun_z / abs(sun_y)  # metres per metre across the street
        lit = [house for house in self.houses if house.side != side]
        flat, steep = [], []
        for house in (house for house in self.houses if house.side == side):
            reach = min(2 * HALF_WIDTH, house.eaves / drop)
            start, stop = house.start + slip * reach, house.stop + slip * reach
            edge = y - side * reach
            flat.append(
                [(house.start, y, 0), (house.stop, y, 0), (stop, edge, 0), (start, edge, 0)]
            )
            height = house.eaves - drop * reach
            for other in lit:
                if height > 0 and start < other.stop and other.start < stop:
                    low, high = max(start, other.start), min(stop, other.stop)
                    top = min(height, other.eaves)
                    steep.append([(low, -y, 0), (high, -y, 0), (high, -y, top), (low, -y, top)])
        return [
            ([self.to_world(np.array(polygon)) for polygon in polygons], normal)
            for polygons, normal in ((flat, self.frame[2]), (steep, side * self.frame[1]))
        ]
