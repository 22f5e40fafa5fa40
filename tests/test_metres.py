"""Degrees to metres: against the formula on the sphere's surface, across every border there is."""

import numpy as np
import pytest

from retrieval.data.metres import in_shared_zones, to_metres
from retrieval.data.places import Positions
from retrieval.data.positives import by_distance


def geodesic(one, other) -> float:
    """Metres between two nearby points of the ellipsoid WGS 84, by its radii of curvature."""
    a, e2 = 6378137.0, 0.00669437999014
    latitude = np.radians((one[0] + other[0]) / 2)
    root = np.sqrt(1 - e2 * np.sin(latitude) ** 2)
    along, across = a * (1 - e2) / root**3, a / root * np.cos(latitude)
    turn = (other[1] - one[1] + 180) % 360 - 180
    return float(np.hypot(along * np.radians(other[0] - one[0]), across * np.radians(turn)))


def nowhere(count) -> np.ndarray:
    return np.full(count, np.nan)


def metres(*degrees) -> Positions:
    return to_metres(np.array(degrees), nowhere(len(degrees)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((55.6981, 13.1953), (55.6982, 13.1956)),
        ((48.0, 5.9999), (48.0, 6.0001)),  # zones 31 and 32
        ((37.7, -120.0001), (37.7, -119.9999)),
        ((0.0001, 9.0), (-0.0001, 9.0)),  # the equator
        ((-0.0001, 11.9999), (0.0001, 12.0001)),  # both at once
        ((-17.0, 179.9999), (-17.0, -179.9999)),  # the date line, in Fiji
        ((60.4, 2.9999), (60.4, 3.0001)),  # the wider zone of Norway
        ((78.2, 20.9999), (78.2, 21.0001)),  # Svalbard
        ((83.9, 5.9), (83.9, 6.1)),
    ],
)
def test_neighbours_share_a_zone_and_lie_as_far_apart_as_on_the_ground(one, other):
    found = metres(one, other)
    assert found.zones[0] == found.zones[1] != 0
    apart = np.linalg.norm(found.utm[0] - found.utm[1])
    assert apart == pytest.approx(geodesic(one, other), rel=1.5e-3)


def test_a_single_photo_has_the_metres_that_maps_print():
    """CN Tower, by the worked example of Wikipedia's article on UTM: 17T 630084 4833438."""
    found = metres((43.642567, -79.387139))
    assert found.utm[0] == pytest.approx((630084, 4833438), abs=1.5)
    assert found.zones.tolist() == [17]
    assert metres((-33.8568, 151.2153)).zones.tolist() == [-56]


def test_a_region_across_a_border_is_in_the_zone_of_its_middle():
    found = metres(*((48.0, longitude) for longitude in np.linspace(1.0, 12.5, 24)))
    assert len(np.unique(found.zones)) == 1
    assert np.isin(found.zones, (31, 32)).all()


def test_no_neighbours_of_a_walk_around_the_world_are_torn_but_at_its_widest_gaps():
    """Clusters of photos everywhere, some on borders: each cluster stays in one zone."""
    rng = np.random.default_rng(0)
    centres = np.concatenate([np.arange(-180, 180, 6.0), rng.uniform(-180, 180, 40)])
    cluster = np.repeat(np.arange(len(centres)), 5)
    latitudes = rng.uniform(-70, 70, len(centres))[cluster] + rng.uniform(-1e-4, 1e-4, len(cluster))
    longitudes = centres[cluster] + rng.uniform(-1e-4, 1e-4, len(cluster))
    order = rng.permutation(len(cluster))
    degrees = np.column_stack([latitudes, (longitudes + 180) % 360 - 180])[order]
    found = to_metres(degrees, nowhere(len(degrees)))
    for number in range(len(centres)):
        rows = np.flatnonzero(cluster[order] == number)
        assert len(np.unique(found.zones[rows])) == 1
        for row in rows[1:]:
            apart = np.linalg.norm(found.utm[row] - found.utm[rows[0]])
            assert apart == pytest.approx(geodesic(degrees[row], degrees[rows[0]]), rel=8e-3)


@pytest.mark.parametrize("degrees", [(84.5, 10.0), (-80.5, 10.0), (np.nan, 10.0)])
def test_where_utm_ends_there_are_no_metres(degrees):
    found = metres(degrees, (50.0, 10.0))
    assert np.isnan(found.utm[0]).all()
    assert np.isfinite(found.utm[1]).all()


def test_no_photos():
    assert to_metres(np.empty((0, 2)), nowhere(0)).utm.shape == (0, 2)


def test_metres_of_two_zones_meet_in_one():
    """The same two photos 20 m apart, told in the zones that they lie in."""
    west, east = metres((48.0, 5.99986)), metres((48.0, 6.00013))
    assert (west.zones[0], east.zones[0]) == (31, 32)
    both = Positions(
        np.concatenate([west.utm, east.utm]), np.array([10.0, 20.0]), np.array([31, 32])
    )
    found = in_shared_zones(both)
    assert np.linalg.norm(found.utm[0] - found.utm[1]) == pytest.approx(20.1, abs=0.2)
    assert found.heading.tolist() == [10, 20]
    halves = [Positions(found.utm[[i]], found.heading[[i]], found.zones[[i]]) for i in (0, 1)]
    assert by_distance(*halves, 25.0).positives[0].tolist() == [0]


@pytest.mark.parametrize("zones", [[10, 10], [0, 10], [10, 11]])
def test_metres_of_one_zone_of_none_or_of_a_local_grid_stay_as_they_are(zones):
    local = Positions(np.array([[56.21, 193.88], [62.79, 194.54]]), nowhere(2), np.array(zones))
    assert in_shared_zones(local) is local
