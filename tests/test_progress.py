import logging

from retrieval import progress


def test_a_piped_bar_tells_lines_with_the_time_left(monkeypatch, caplog):
    now = iter(range(0, 10_000, 20))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    caplog.set_level(logging.INFO)
    with progress.bar("local features", 1000):
        for _ in range(12):
            progress.advance(50, "loss 1.0")
    assert caplog.messages[0].startswith("local features: 100 of 1000 photos, ")
    assert all("left, loss 1.0" in line for line in caplog.messages)
    assert 3 <= len(caplog.messages) <= 12


def test_what_is_done_goes_to_the_innermost_bar_and_never_beyond_its_total():
    with progress.bar("outer", 10):
        outer = progress._open[-1]
        with progress.bar("inner", 3):
            inner = progress._open[-1]
            progress.advance(2)
            progress.advance(5)
        progress.advance(4)
    assert (inner.done, outer.done) == (3, 4)
    progress.advance(7)  # nobody watches
    assert not progress._open


def test_the_clock_adds_up_the_stages_of_one_name():
    clock = progress.Clock()
    for _ in range(2):
        with clock.stage("ranking", 5):
            progress.advance(5)
    assert list(clock.seconds) == ["ranking"]
    assert clock.seconds["ranking"] > 0
