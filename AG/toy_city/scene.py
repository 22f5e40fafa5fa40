"""A pinhole camera, textured planes, and painting them from far to near.

World coordinates are metres: east, north, up. Headings are in degrees clockwise from north. Pixel
coordinates are (x, y), and the centre of the top-left pixel is (0, 0). Whatever is painted goes
through `Camera.project`'s geometry, so that views of one façade are related by exact homographies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from toy_city.light import Light, paint_sky

NEAR = 0.2  # metres; nothing nearer to the camera is painted
_LIMITS = np.array([NEAR, 0, 0, 0, 0])
_NOTHING = np.empty((0, 3))
SUPERSAMPLING = 2  # a picture is painted this many times as large, then reduced


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: position in metres, angles in degrees, focal length in pixels.

    Pitch is positive upwards; a positive roll turns the camera clockwise, as seen from behind it.
    """

    position: tuple[float, float, float]
    heading: float
    pitch: float
    roll: float
    focal: float
    width: int
    height: int

    def intrinsics(self) -> np.ndarray:
        """The (3, 3) calibration matrix, its principal point in the middle of the picture."""
        centre = (self.width - 1) / 2, (self.height - 1) / 2
        return np.array([[self.focal, 0, centre[0]], [0, self.focal, centre[1]], [0, 0, 1]])

    def rotation(self) -> np.ndarray:
        """(3, 3), world to camera: its rows are the camera's right, down and forward."""
        heading, pitch, roll = np.radians((self.heading, self.pitch, self.roll))
        level = np.array([np.sin(heading), np.cos(heading), 0.0])
        forward = np.cos(pitch) * level + (0, 0, np.sin(pitch))
        right = np.array([np.cos(heading), -np.sin(heading), 0.0])
        down = np.cross(forward, right)
        rolled = np.cos(roll) * right + np.sin(roll) * down
        return np.stack([rolled, np.cross(forward, rolled), forward])

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) world points in camera coordinates: right, down, forward."""
        return (np.asarray(points, float) - self.position) @ self.rotation().T

    def project(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) pixel coordinates of (N, 3) world points in front of the camera."""
        return _to_pixels(self.to_camera(points), self.intrinsics())

    def rays(self, step: int) -> np.ndarray:
        """(h, w, 3) float32 unit vectors, in the world, through every `step`th pixel."""
        x, y = np.meshgrid(np.arange(0, self.width, step), np.arange(0, self.height, step))
        pixels = np.stack([x, y, np.ones_like(x)], axis=2)
        seen = pixels @ np.linalg.inv(self.intrinsics()).T
        unit = seen / np.linalg.norm(seen, axis=2, keepdims=True)
        return (unit @ self.rotation()).astype(np.float32)

    def supersampled(self, factor: int) -> "Camera":
        """The same camera with pixels `factor` times as fine."""
        size = self.width * factor, self.height * factor
        return Camera(
            self.position, self.heading, self.pitch, self.roll, self.focal * factor, *size
        )


@dataclass
class Plane:
    """A texture on a plane. Its pixel (u, v) covers [u, u + 1] × [v, v + 1] in texture coordinates.

    Texture coordinates (u, v) lie at `corner + u · across + v · down` in the world. `outline` is
    the (n, 2) convex polygon of texture coordinates that is painted, by default all of it.
    """

    texture: np.ndarray
    corner: np.ndarray
    across: np.ndarray
    down: np.ndarray
    outline: np.ndarray | None = None
    _levels: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        h, w = self.texture.shape[:2]
        if self.outline is None:
            self.outline = np.array([(0, 0), (w, 0), (w, h), (0, h)], float)
        self.polygon = self.at(self.outline)
        normal = np.cross(self.down, self.across)
        self.normal = normal / np.linalg.norm(normal)

    def at(self, texture_points: np.ndarray) -> np.ndarray:
        """(N, 3) world points of (N, 2) texture coordinates."""
        points = np.asarray(texture_points, float)
        return self.corner + points[:, :1] * self.across + points[:, 1:] * self.down

    def level(self, x: int, y: int) -> np.ndarray:
        """The texture reduced by 2^x horizontally and 2^y vertically, made once."""
        if x == y == 0:
            return self.texture
        if (x, y) not in self._levels:
            finer = self.level(x - 1, y) if x > y else self.level(x, y - 1)
            size = max(1, self.texture.shape[1] >> x), max(1, self.texture.shape[0] >> y)
            self._levels[x, y] = cv2.resize(finer, size, interpolation=cv2.INTER_AREA)
        return self._levels[x, y]


@dataclass(frozen=True)
class Flat:
    """A polygon (n, 3) of one colour."""

    polygon: np.ndarray
    colour: tuple[float, float, float]


class Painter:
    """Paints planes and flat polygons, in the order in which they are given, over a sky."""

    def __init__(self, camera: Camera, light: Light, cloud_map: np.ndarray):
        self.camera = camera.supersampled(SUPERSAMPLING)
        self.light = light
        self._rotation, self._intrinsics = self.camera.rotation(), self.camera.intrinsics()
        self._sides = _frustum(self._intrinsics, self.camera.width, self.camera.height)
        sky = paint_sky(self.camera.rays(step=8), light, cloud_map)
        self.canvas = cv2.resize(sky, (self.camera.width, self.camera.height))

    def picture(self) -> np.ndarray:
        """The finished (height, width, 3) uint8 picture."""
        size = self.camera.width // SUPERSAMPLING, self.camera.height // SUPERSAMPLING
        return cv2.resize(self.canvas, size, interpolation=cv2.INTER_AREA)

    def paint_planes(self, planes: Sequence[Plane]) -> None:
        """Paints those planes whose front faces the camera."""
        position = np.array(self.camera.position)
        facing = [plane for plane in planes if plane.normal @ (position - plane.corner) > 0]
        for plane, seen in zip(facing, self._clip([p.polygon for p in facing]), strict=True):
            if len(seen):
                self._paint_plane(plane, seen)

    def paint_flats(self, flats: Sequence[Flat]) -> None:
        """Paints polygons of one colour, lit from everywhere."""
        light = self.light.ambient + 0.35 * self.light.sunlight
        for flat, seen in zip(flats, self._clip([flat.polygon for flat in flats]), strict=True):
            if len(seen):
                corners = np.round(_to_pixels(seen, self._intrinsics) * 16).astype(np.int32)
                colour = np.minimum(np.array(flat.colour) * light, 255)
                cv2.fillPoly(self.canvas, [corners], colour.tolist(), cv2.LINE_AA, 4)

    def darken(self, polygons: Sequence[np.ndarray], normal: np.ndarray) -> None:
        """Takes the sunlight away inside world polygons on surfaces with one normal."""
        mask = np.zeros(self.canvas.shape[:2], np.uint8)
        for seen in self._clip(polygons):
            if len(seen):
                corners = np.round(_to_pixels(seen, self._intrinsics) * 16).astype(np.int32)
                cv2.fillConvexPoly(mask, corners, 255, shift=4)
        x, y, w, h = cv2.boundingRect(mask)
        if w:
            ratio = self.light.on(normal, shadowed=True) / self.light.on(normal)
            dark = cv2.transform(self.canvas[y : y + h, x : x + w], np.diag(ratio))
            self._place(dark, x, y, mask[y : y + h, x : x + w])

    def _paint_plane(self, plane: Plane, seen: np.ndarray) -> None:
        """Warps a texture into the polygon `seen`, (n, 3) in camera coordinates."""
        corners = _to_pixels(seen, self._intrinsics)
        axes = np.stack([plane.across, plane.down, plane.corner - self.camera.position], axis=1)
        homography = self._intrinsics @ self._rotation @ axes
        level, to_texture = _choose_level(plane, homography, corners, seen[:, 2])
        x, y, mask = self._mask(corners)
        shift = np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1.0]])
        patch = cv2.warpPerspective(
            level,
            shift @ homography @ to_texture,
            (mask.shape[1], mask.shape[0]),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        keep = float(np.exp(-seen[:, 2].mean() / self.light.visibility))
        shade = np.diag(self.light.on(plane.normal) * keep)
        shaded = cv2.transform(patch, np.column_stack([shade, self.light.haze * (1 - keep)]))
        self._place(shaded, x, y, mask)

    def _mask(self, corners: np.ndarray) -> tuple[int, int, np.ndarray]:
        """The part of the canvas around a polygon: its left, its top, its (h, w) uint8 mask."""
        left, top = (max(int(value), 0) for value in corners.min(axis=0))
        right, bottom = (int(value) + 2 for value in corners.max(axis=0))
        width = min(right, self.camera.width) - left
        height = min(bottom, self.camera.height) - top
        mask = np.zeros((max(height, 1), max(width, 1)), np.uint8)
        outline = np.round((corners - (left, top)) * 16).astype(np.int32)
        cv2.fillConvexPoly(mask, outline, 255, shift=4)
        return left, top, mask

    def _place(self, patch: np.ndarray, x: int, y: int, mask: np.ndarray) -> None:
        area = self.canvas[y : y + mask.shape[0], x : x + mask.shape[1]]
        cv2.copyTo(patch, mask, area)

    def _clip(self, polygons: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The parts of convex world polygons inside the view, in camera coordinates.

        Each part is (n, 3) with n ≥ 3, or empty.
        """
        if not polygons:
            return []
        starts = np.cumsum([0, *map(len, polygons)])
        points = (np.concatenate(polygons) - self.camera.position) @ self._rotation.T
        distance = points @ self._sides.T - _LIMITS
        outside = np.minimum.reduceat(distance, starts[:-1]) < 0
        hidden = (np.maximum.reduceat(distance, starts[:-1]) <= 0).any(axis=1)
        parts = [_NOTHING] * len(polygons)
        for index in np.flatnonzero(~hidden):
            part = points[starts[index] : starts[index + 1]]
            for side in np.flatnonzero(outside[index]):
                part = _cut(part, part @ self._sides[side] - _LIMITS[side])
            if len(part) >= 3:
                parts[index] = part
        return parts


def _to_pixels(points: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    projected = points @ intrinsics.T
    return projected[:, :2] / projected[:, 2:]


def _frustum(intrinsics: np.ndarray, width: int, height: int) -> np.ndarray:
    """(5, 3) inward normals of the view: near, left, right, top, bottom, a pixel wider."""
    corners = np.array([(-1, -1, 1), (width, -1, 1), (width, height, 1), (-1, height, 1)], float)
    rays = corners @ np.linalg.inv(intrinsics).T
    left, right = np.cross(rays[0], rays[3]), np.cross(rays[2], rays[1])
    top, bottom = np.cross(rays[1], rays[0]), np.cross(rays[3], rays[2])
    sides = np.array([(0, 0, 1), left, right, top, bottom])
    return sides * np.sign(sides[:, 2:])


def _cut(points: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """The part of a convex polygon with distance ≥ 0 (Sutherland and Hodgman, 1974)."""
    inside = (distance >= 0).tolist()
    kept = []
    for index in range(len(points)):
        before = index - 1
        if inside[before] != inside[index]:
            share = distance[before] / (distance[before] - distance[index])
            kept.append(points[before] + share * (points[index] - points[before]))
        if inside[index]:
            kept.append(points[index])
    return np.array(kept).reshape(-1, 3)


def _choose_level(
    plane: Plane, homography: np.ndarray, corners: np.ndarray, depths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The reduced texture that suits a view, and the (3, 3) map from its pixels to the texture.

    `corners` (n, 2) pixels and `depths` (n,) metres are those of the seen part. The reductions
    across and down are chosen apart, since a façade seen askance shrinks in one direction only.
    """
    # The derivative of a pixel by a texture coordinate, at each corner: (n, axis, x or y).
    slopes = homography[:2, :2].T - corners[:, None] * homography[2, :2, None]
    stretch = np.sqrt((slopes**2).sum(axis=2)) / depths[:, None]
    x, y = (min(max(round(-value - 0.2), 0), 5) for value in np.log2(stretch + 1e-9).mean(axis=0))
    level = plane.level(x, y)
    (h, w), (level_h, level_w) = plane.texture.shape[:2], level.shape[:2]
    sx, sy = w / level_w, h / level_h
    return level, np.array([[sx, 0, sx / 2], [0, sy, sy / 2], [0, 0, 1]])
