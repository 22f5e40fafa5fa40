import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.made_up import evaluation_of, set_features

from retrieval import metrics
from retrieval.configs.rank import RerankConfig
from retrieval.data.photo_sets import PhotoSet
from retrieval.data.positives import Positives
from retrieval.drawing import palette
from retrieval.drawing.html_report import charts, gallery
from retrieval.drawing.html_report.outcomes import outcomes
from retrieval.drawing.html_report.page import render, stamp, table, write_report
from retrieval.evaluation import Evaluation
from retrieval.features import LocalFeatures
from retrieval.search import Ranking

NOTHING = LocalFeatures(
    np.empty((0, 2), np.float32), np.empty((0, 8), np.float32), np.empty(0, np.float32), (1, 1)
)


def rows(*lists: list[int]) -> list[np.ndarray]:
    return [np.array(each, np.int64) for each in lists]


def features(seed: int, count: int = 30, size: tuple[int, int] = (64, 48)) -> LocalFeatures:
    """Features of one wall: equal seeds match, and lie at the same places."""
    rng = np.random.default_rng(seed)
    descriptors = rng.normal(size=(count, 8)).astype(np.float32)
    return LocalFeatures(
        (rng.random((count, 2)) * size).astype(np.float32),
        descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True),
        np.sort(rng.random(count).astype(np.float32))[::-1],
        size,
        np.full(count, 8, np.float32),
    )


@pytest.fixture
def four(photo, tmp_path):
    """Four queries and six database photos.

    Query 0 was wrong and is helped, 1 was right and is hurt, 2 stays right, 3 has no positives.
    """
    photos = PhotoSet(
        tmp_path,
        [photo(f"queries/@{10 * i}@{5 * i}@q{i}.png", seed=i) for i in range(4)],
        [photo(f"database/@{10 * i}@{5 * i + 3}@d{i}.png", seed=i) for i in range(6)],
        {"R": Positives(rows([0, 5], [1], [2], []), rows([], [], [], []))},
    )
    before = np.array([[1, 0, 2, 3, 4], [1, 0, 2, 3, 4], [2, 1, 0, 3, 4], [3, 0, 1, 2, 4]])
    after = np.array([[0, 1, 2, 3, 4], [2, 3, 0, 4, 1], [2, 1, 0, 3, 4], [3, 0, 1, 2, 4]])
    return run_of(photos, {"global": before, "reranked": after})


def run_of(photos: PhotoSet, rankings: dict, **more) -> Evaluation:
    given = {
        "seconds": {"global descriptors": 3.0, "re-ranking": 1.5},
        "settings": {"weights": "none", "rerank": {"floor": 3, "scales": [1.0, 2.0]}, "seed": None},
        "num_inliers": np.arange(2 * len(photos.queries)).reshape(-1, 2),
        "features": set_features(features, features, photos),
    }
    return evaluation_of(photos, rankings, **{**given, **more})


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str, **wanted: str) -> list[dict]:
        return [
            attrs
            for name, attrs in self.elements
            if name == tag and all(attrs.get(key) == value for key, value in wanted.items())
        ]

    def words(self) -> str:
        return re.sub(r"\s+", " ", self.text)


def page_of(run: Evaluation, most: int = 50) -> Page:
    return Page(render(run, most))


def card_ids(page: Page) -> list[str]:
    return [card["id"] for card in page.all("article")]


def test_outcomes_are_those_of_the_first_positive(four):
    found = outcomes(four)
    assert found.before.tolist() == [2, 1, 1, np.inf]
    assert found.after.tolist() == [1, 5, 1, np.inf]
    assert found.right.tolist() == [True, False, True, False]
    assert [found.effect(query) for query in range(4)] == ["helped", "hurt", "", ""]


def test_wrong_ones_come_first_and_what_is_left_out_is_said(four):
    page = page_of(four)
    assert card_ids(page) == ["query-1", "query-3", "query-0", "query-2"]
    assert "4 of 4 queries shown, wrong ones first: 2 of 2 wrong, 2 of 2 right" in page.words()
    page = page_of(four, 1)
    assert card_ids(page) == ["query-1"]
    assert "1 of 4 queries shown, wrong ones first: 1 of 2 wrong, 0 of 2 right" in page.words()
    page = page_of(four, 0)
    assert card_ids(page) == []
    assert "--report_queries 0" in page.text


def test_a_fifth_of_the_gallery_is_kept_for_right_ones():
    ranks = np.array([2.0] * 20 + [1.0] * 20)
    found = gallery.Outcomes(np.roll(ranks, 5), ranks, np.ones(40, bool))
    chosen = gallery.choose(found, 40, 10)
    assert chosen.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 20, 21]  # 0 to 4 were hurt, 20 to 24 helped
    assert sorted(gallery.choose(found, 40, 100)) == list(range(40))
    assert gallery.choose(None, 40, 3).tolist() == [0, 1, 2]


def test_cards_say_ranks_marks_and_inliers(four):
    cards = gallery.cards(four, outcomes(four), np.array([0, 1, 3]))
    first = cards[0].tiles[:3]
    assert [(tile.mark, tile.old_rank, tile.rank, tile.inliers) for tile in first] == [
        ("right", 2, 1, "1"), ("wrong", 1, 2, "0"), ("wrong", 3, 3, ""),
    ]  # fmt: skip
    assert cards[0].notes == ["first positive: rank 2 → 1"]
    assert cards[1].notes == ["first positive: rank 1 → 5"]
    assert cards[1].missed is None
    assert cards[2].notes == ["no positives in the database: counts as a miss"]
    assert [picture.label for picture in cards[0].pictures] == ["attention", "matches"]
    caption = cards[0].pictures[1].caption
    assert "30 inliers of 30 matches (affine, within 15 px); inliers blue" in caption


def test_a_positive_that_is_not_shown_is_added(four):
    rankings = {step: ranking[:, [3, 4]] for step, ranking in four.rankings.items()}
    (card,) = gallery.cards(run_of(four.photos, rankings), None, np.array([0]))
    assert card.missed is not None
    assert (card.missed.name, card.missed.rank) == ("database/@0@3@d0.png", None)


def test_one_step_has_no_old_ranks_and_no_filters_for_them(four):
    page = page_of(run_of(four.photos, {"global": four.last.ranking.rows}))
    assert [button["data-filter"] for button in page.all("button") if "data-filter" in button] == [
        "all", "wrong", "right",
    ]  # fmt: skip
    assert "before and after" not in page.words()
    assert "first positive: rank 5" in page.words()
    assert "by re-ranking" not in page.words()


def test_filters_count_the_cards_that_they_show(four):
    html = render(four, 50)
    counts = dict(re.findall(r'data-filter="(\w+)".*?<span>(\d+)</span></button>', html))
    kinds = [card["data-kinds"].split() for card in Page(html).all("article")]
    assert set(counts) == {"all", "wrong", "right", "helped", "hurt"}
    for kind, count in counts.items():
        assert int(count) == sum(kind in each for each in kinds)


def test_nothing_is_fetched_from_elsewhere(four):
    page = page_of(four)
    links = [
        value
        for _, attrs in page.elements
        for name, value in attrs.items()
        if name in ("src", "href", "data-picture", "xlink:href", "srcset", "action")
    ]
    assert links
    assert all(value.startswith(("data:", "#")) for value in links)
    style = render(four, 50).split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'")
    assert palette.RIGHT in style
    assert palette.WRONG in style


def test_hostile_names_stay_text(photo, tmp_path):
    # A slash cannot be in a file name, so the element is closed by nothing.
    hostile = "<script>alert(1)\"'&<img src=x onerror=y>.png"
    photos = PhotoSet(tmp_path, [photo(hostile)], [photo(f"d{hostile}")])
    ranking = {"global": np.array([[0]])}
    content = run_of(photos, ranking, notes=[hostile], settings={hostile: {hostile: hostile}})
    page = page_of(content)
    assert len(page.all("script")) == 1
    assert not page.all("img", src="x")
    assert page.all("code", title=hostile)
    assert hostile in page.words()


def test_names_that_are_no_utf_8_can_be_written(photo, tmp_path):
    photos = PhotoSet(tmp_path, [Path(tmp_path / "\udcff.png")], [photo("d.png")])
    path = tmp_path / "report.html"
    write_report(path, run_of(photos, {"global": np.array([[0]])}), 5)
    assert "?.png" in path.read_text(encoding="utf-8")


def test_without_labels_nothing_is_right_or_wrong(four):
    photos = PhotoSet(four.photos.folder, four.photos.queries, four.photos.database)
    page = page_of(run_of(photos, dict(four.rankings)))
    assert "no labels: so there are no figures" in page.words()
    assert "4 of 4 queries shown, in their order, as there are no labels" in page.words()
    assert not page.all("span", **{"class": "badge right"})
    assert not any("data-filter" in button for button in page.all("button"))
    assert not page.all("polyline")
    assert len(page.all("a", **{"class": "mark none"})) == 4


def test_junk_is_neutral_and_is_not_counted(photo, tmp_path):
    truth = {
        "E": Positives(rows([1], []), rows([0, 2], [0])),
        "M": Positives(rows([1, 2], []), rows([0], [0])),
        "H": Positives(rows([2], []), rows([0, 1], [0])),
    }
    photos = PhotoSet(
        tmp_path,
        [photo(f"q{i}.jpg", seed=i) for i in range(2)],
        [photo(f"d{i}.jpg", seed=i) for i in range(3)],
        truth,
        [(4, 4, 40, 40), (0, 0, 64, 48)],
    )
    content = run_of(photos, {"words": np.array([[0, 1, 2], [0, 1, 2]])})
    first, second = gallery.cards(content, outcomes(content), np.arange(2))
    assert [tile.mark for tile in first.tiles] == ["junk", "right", "right"]
    assert first.outcome == "right"
    assert first.notes == ["first positive: rank 1"]
    assert second.outcome == "none"  # without positives it is in no figure of a revisited set
    counted = outcomes(content)
    assert counted.wrong.tolist() == [False, False]
    assert gallery.choose(counted, 2, 2).tolist() == [0, 1]
    assert second.notes == ["no positives in the database: not in the figures"]
    page = page_of(content)
    assert "junk" in page.text
    assert "Recall@N, protocol M" in page.text
    assert "mAP E" in page.text
    assert not page.all("a", **{"class": "mark right"})  # these names tell no coordinates


def test_an_unreadable_photo_has_its_card(four):
    four.photos.queries[1].write_bytes(b"no photo")
    four.photos.database[2].unlink()
    page = page_of(four)
    assert "cannot be read" in page.text
    assert len(card_ids(page)) == 4
    assert len([b for b in page.all("button") if "data-picture" in b]) == 5  # one has no match


def test_a_skipped_query_has_no_predictions(four):
    after = four.last.ranking.rows.copy()
    after[1] = -1
    page = page_of(run_of(four.photos, {"global": four.first.ranking.rows, "reranked": after}))
    assert "no predictions: the photo was skipped" in page.words()
    assert "first positive: rank 1 → beyond 5" in page.words()


def test_pictures_of_nothing_are_drawn_and_say_so(four):
    empty = set_features(lambda query: NOTHING, features, four.photos)
    content = run_of(four.photos, dict(four.rankings), features=empty)
    (card,) = gallery.cards(content, None, np.array([0]))
    attention, matches = card.pictures
    assert "no local features" in attention.caption
    assert "(right): no matches" in matches.caption


def test_without_local_features_a_line_says_why(four):
    page = page_of(run_of(four.photos, dict(four.rankings), features=None))
    assert not any("data-picture" in button for button in page.all("button"))
    assert "--no_rerank" in page.text


def test_only_the_strongest_features_are_matched_where_reranking_did_so(four):
    config = RerankConfig(num_features=12)
    content = run_of(four.photos, dict(four.rankings), config=config)
    (card,) = gallery.cards(content, None, np.array([0]))
    assert "of 12 matches" in card.pictures[1].caption


def test_thumbnails_are_data(photo):
    uri = gallery.thumbnail(photo("large.jpg", (1000, 800)))
    assert uri.startswith("data:image/webp;base64,")
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as image:
        assert image.size == (256, 205)


def slow_precision_at(ranking, positives, junk, recall):
    """The highest precision among all cuts of the list that reach the recall, by hand."""
    best = 0.0
    seen = [row for row in ranking if row not in junk]
    for cut in range(1, len(seen) + 1):
        hits = len(set(seen[:cut]) & set(positives))
        if seen[cut - 1] in positives and hits / len(positives) >= recall - 1e-9:
            best = max(best, hits / cut)
    return 100 * best


def test_precision_at_recalls_is_the_slow_one():
    rng = np.random.default_rng(0)
    ranking = np.stack([rng.permutation(40)[:25] for _ in range(12)])
    lists = [rng.permutation(40) for _ in range(12)]
    positives = [rows[: rng.integers(0, 9)].tolist() for rows in lists]
    positives[3], positives[4] = [], lists[4][:10].tolist()
    junk = [rows[12:16].tolist() for rows in lists]
    recalls = np.linspace(0, 1, 101)
    found = metrics.precision_at_recalls(ranking, Positives(rows(*positives), rows(*junk)), recalls)
    each = [
        [slow_precision_at(row.tolist(), right, left_out, recall) for recall in recalls]
        for row, right, left_out in zip(ranking, positives, junk, strict=True)
        if right
    ]
    np.testing.assert_allclose(found, np.mean(each, axis=0))
    nothing = metrics.precision_at_recalls(ranking[:1], Positives(rows([]), rows([])), recalls)
    assert np.isnan(nothing).all()


def test_curves_are_drawn_where_their_values_are(four):
    recall, precision = charts.charts(four)
    assert list(recall.curves) == ["global", "reranked"]
    across, percents, texts = zip(*recall.curves["reranked"], strict=True)
    assert percents == (50, 50, 50, 50, 75)
    np.testing.assert_allclose(across, np.log(range(1, 6)) / np.log(5))
    assert texts[4] == "reranked: recall@5 is 75.0 %"
    assert [text for _, text in recall.x_ticks] == ["1", "2", "5"]
    assert len(precision.curves["global"]) == 101
    assert "but the 1 without positives" in precision.note
    assert "beyond the first 5 predictions" in precision.note
    # The frame of the page: (48, 12) to (466, 262).
    lines = [line["points"].split() for line in page_of(four).all("polyline")]
    assert lines[1][0] == "48.0,137.0"
    assert lines[1][-1] == "466.0,74.5"
    assert len(lines[2]) == 101


def test_the_map_has_one_scale_and_north_is_up(four):
    found = charts.place_map(four, outcomes(four))
    marks = {mark.query: mark for mark in found.marks}
    assert marks[2].x - marks[0].x == pytest.approx(20, abs=0.02)
    assert marks[0].y - marks[2].y == pytest.approx(10, abs=0.02)
    assert [marks[query].outcome for query in range(4)] == ["right", "wrong", "right", "wrong"]
    assert [marks[query].effect for query in range(4)] == ["helped", "hurt", "", ""]
    assert found.database.count("M") == 6
    first = re.match(r"M(\S+) (\S+)h0", found.database)
    assert float(first[1]) == pytest.approx(marks[0].x, abs=0.05)
    assert marks[0].y - float(first[2]) == pytest.approx(3, abs=0.05)  # three metres north of it
    assert page_of(four).all("svg", viewbox=f"0 0 {found.width} {found.height}")
    for mark in found.marks:
        assert 0 < mark.x < found.width
        assert 0 < mark.y < found.height


def test_the_best_figures_stand_out_where_they_differ():
    figures = {"global": {"R@1": 50.0, "R@5": 80.0}, "reranked": {"R@1": 50.04, "R@5": np.nan}}
    cells = table(figures)
    assert [(cell.text, cell.best) for cell in cells["global"]] == [("50.0", False), ("80.0", True)]
    assert [(cell.text, cell.best) for cell in cells["reranked"]] == [("50.0", False), ("–", False)]
    assert table({}) == {}


def test_the_stamp_is_short_and_the_protocol_whole(four):
    commit = "0123456789abcdef0123456789abcdef01234567+changes"
    assert stamp({"commit": commit})["commit"] == "0123456789ab…+changes"
    told = replace(four.protocol, commit=commit, settings={"a": {"b": [1, 2], "c": Path("x")}})
    page = page_of(replace(four, protocol=told))
    assert commit in page.text
    assert "1, 2" in page.text


def test_rankings_of_another_number_of_queries_are_refused(four):
    with pytest.raises(ValueError, match=r"4 queries, not \(3, 5\)"):
        replace(four, photos=four.photos, steps=(short_step(four),))
    with pytest.raises(ValueError, match="at least one step"):
        run_of(four.photos, {})


def short_step(run):
    rows, similarity = run.last.ranking.rows[:3], run.last.ranking.similarity[:3]
    return replace(run.last, ranking=Ranking(rows, similarity))
