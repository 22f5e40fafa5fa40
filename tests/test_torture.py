"""A short `make torture`: nothing that is damaged, killed or done twice at once falls short."""

import pytest
from tests.torture import damage, kills, scarcity, table


@pytest.mark.parametrize("kind", damage.KINDS)
def test_damaged_files_are_refused_or_read_as_they_were(kind, tmp_path):
    row = damage.fuzz(kind, 24, 1, tmp_path)
    assert row.tried == 24
    assert not row.outcomes["fell short"], table.in_words([row])


def test_killed_commands_end_as_if_they_had_not_been(tmp_path):
    rows = kills.kill_all(2, 1, tmp_path / "kills", ["make_toy_city", "get_data", "train"])
    assert [row.tried for row in rows] == [2, 2, 2]
    assert not any(row.outcomes["fell short"] for row in rows), table.in_words(rows)


def test_two_at_once_leave_what_one_leaves(tmp_path):
    row = scarcity.two_at_once(tmp_path / "two", ("make_toy_city", "get_data"))
    assert not row.outcomes["fell short"], table.in_words([row])
