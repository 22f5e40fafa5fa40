from dataclasses import dataclass
from typing import Literal

import pytest

from retrieval.commands import flags
from retrieval.errors import InputError


@dataclass(frozen=True)
class Example:
    """An example. With more words."""

    lr: float = 0.5
    scales: tuple[float, ...] = (1.0, 2.0)
    reduction: bool = False
    ratio: float | None = None
    head: Literal["delg", "gem"] = "delg"
    not_described: int = 3


def read(*argv: str, **values) -> Example:
    parser = flags.make_parser("text")
    flags.add_configs(parser, Example)
    return flags.parse(parser, argv).config(Example, **values)


def test_without_flags_the_defaults_of_the_config_hold():
    assert read() == Example()


def test_every_kind_of_field_becomes_a_flag():
    words = "--lr 0.1 --scales 0.5 1 --reduction --ratio 0.9 --head gem"
    assert read(*words.split()) == Example(0.1, (0.5, 1.0), True, 0.9, "gem")


def test_hyphens_in_flags_are_underscores_but_values_stay():
    parser = flags.make_parser("text")
    parser.add_argument("--data_root")
    read = flags.parse(parser, ["--data-root=some-folder"]).get("data_root")
    assert read == "some-folder"
    assert flags.parse(parser, ["--data_root", "a-b"]).get("data_root") == "a-b"


def test_own_texts_choose_and_describe_the_flags(capsys):
    parser = flags.make_parser("text")
    flags.add_configs(parser, Example, texts={"not_described": "now it is"})
    assert flags.parse(parser, ["--not-described", "5"]).given(Example) == {"not_described": 5}
    with pytest.raises(SystemExit):
        flags.parse(parser, ["-h"])
    assert "now it is (default: 3)" in capsys.readouterr().out


def test_names_between_commas():
    assert flags.split_names("--sets", " a, b,") == ("a", "b")
    with pytest.raises(InputError, match=r"--sets 'a,a': a name comes twice"):
        flags.split_names("--sets", "a,a")


def test_only_what_was_written_is_given():
    parser = flags.make_parser("text")
    flags.add_configs(parser, Example)
    assert flags.parse(parser, ["--lr", "2"]).given(Example) == {"lr": 2.0}


def test_values_come_before_flags():
    assert read("--lr", "2", lr=3.0).lr == 3.0


@pytest.mark.parametrize("words", ["--l 1", "--head other", "--not_described 1", "--lr x"])
def test_unknown_flags_values_and_abbreviations_are_refused(words, capsys):
    with pytest.raises(SystemExit) as stop:
        read(*words.split())
    assert stop.value.code == 2
    assert words.split()[0] in capsys.readouterr().err
