"""rerank.toml: what is written comes back, and what is wrong is named."""

from dataclasses import replace

import pytest

from retrieval.commands import eval_flags
from retrieval.configs.rank import MatchConfig, RerankConfig, VerifyConfig
from retrieval.configs.rerank_file import read_rerank, write_rerank
from retrieval.errors import InputError

FULL = RerankConfig(
    top_k=7,
    num_features=300,
    match=MatchConfig("one_way", 0.9, 0.1 + 0.2, "float32"),
    verify=VerifyConfig("homography", "poselib", 1 / 3, 50, 0.5, 3),
    fusion=2.5,
    floor=12.0,
    floor_pairs=9,
    floor_quantile=0.5,
    seed=4,
)


BY_HAND = 'checksum = "none"\n'


@pytest.mark.parametrize("config", [FULL, RerankConfig(), None], ids=["full", "default", "none"])
def test_what_is_written_comes_back(tmp_path, config):
    file = tmp_path / "deeper" / "rerank.toml"
    write_rerank(file, config, ["first line", "", "R@1 + 5\nlast = line"])
    assert read_rerank(file) == config
    assert file.read_text().startswith("# first line\n#\n# R@1 + 5\n# last = line\n")
    assert [path.name for path in file.parent.iterdir()] == ["rerank.toml"]


def test_a_file_that_lost_its_checksum_is_damaged(tmp_path):
    file = tmp_path / "rerank.toml"
    write_rerank(file, FULL)
    lines = [line for line in file.read_text().splitlines() if not line.startswith("checksum")]
    file.write_text("\n".join(lines))
    with pytest.raises(InputError, match='by hand: then give it the line checksum = "none"'):
        read_rerank(file)
    file.write_text("\n".join([BY_HAND, *lines]))
    assert read_rerank(file) == FULL


def test_what_is_left_out_is_as_by_default_and_whole_numbers_will_do(tmp_path):
    file = tmp_path / "rerank.toml"
    file.write_text(f"{BY_HAND}floor = 12\n[verify]\nresidual = 8\n")
    expected = RerankConfig(floor=12.0, verify=VerifyConfig(residual=8.0))
    assert read_rerank(file) == expected
    assert type(read_rerank(file).floor) is float
    file.write_text(f"{BY_HAND}rerank = false\ntop_k = 3\n")
    assert read_rerank(file) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("top_k = ", "cannot be read"),
        ("\x00", "cannot be read"),
        ("topk = 3", "topk is no setting; those there: top_k, num_features"),
        ("[match]\nrules = 'mutual'", "match.rules is no setting; those there: rule, ratio"),
        ("[matching]\nrule = 'mutual'", "matching is no setting"),
        ("match = 'mutual'", r"match = 'mutual': expected a table, \[match\]"),
        ("top_k = 2.5", "top_k = 2.5: expected a whole number"),
        ("top_k = true", "top_k = True: expected a whole number"),
        ("floor = 'many'", "floor = 'many': expected a number"),
        ("floor = nan", "floor nan"),
        ("[verify]\nmodel = 3", "verify.model = 3: expected a word"),
        ("[verify]\nmodel = 'afine'", "--model afine: expected one of affine"),
        ("top_k = 0", "--top_k 0: at least 1 is needed"),
        ("seed = -1", "--seed -1: at least 0 is needed"),
        ("rerank = 'no'", "expected true or false"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path, text, message):
    file = tmp_path / "rerank.toml"
    file.write_text(BY_HAND + text)
    with pytest.raises(InputError, match=message) as error:
        read_rerank(file)
    assert str(file) in str(error.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none.toml: no such file \(tune.py"):
        read_rerank(tmp_path / "none.toml")
    with pytest.raises(InputError, match="cannot be read"):
        read_rerank(tmp_path)


def read_flags(tmp_path, words: str) -> RerankConfig | None:
    command = f"--test_set_folder {tmp_path} --pretrained none {words}"
    return eval_flags.read_evaluation("", command.split()).judged.rerank


def test_flags_win_over_the_file(tmp_path):
    file = tmp_path / "rerank.toml"
    write_rerank(file, FULL)
    assert read_flags(tmp_path, f"--rerank_config {file}") == FULL
    found = read_flags(
        tmp_path,
        f"--rerank_config {file} --top_k 4 --residual 9 --rule mutual --precision fp32 --fusion 0",
    )
    assert found == replace(
        FULL,
        top_k=4,
        fusion=0.0,
        match=replace(FULL.match, rule="mutual"),
        verify=replace(FULL.verify, residual=9.0),
    )
    assert read_flags(tmp_path, "--top_k 4") == RerankConfig(top_k=4)


def test_file_or_flag_may_say_that_there_is_no_reranking(tmp_path):
    file = tmp_path / "rerank.toml"
    write_rerank(file, None)
    assert read_flags(tmp_path, f"--rerank_config {file} --top_k 4") is None
    write_rerank(file, FULL)
    assert read_flags(tmp_path, f"--rerank_config {file} --no_rerank") is None


def test_the_file_that_decided_is_told(tmp_path):
    file = tmp_path / "rerank.toml"
    write_rerank(file, None)
    command = f"--test_set_folder {tmp_path} --pretrained none --rerank_config {file}".split()
    assert eval_flags.read_evaluation("", command).rerank_config == file
    asked = eval_flags.read_evaluation("", [*command, "--no_rerank"])
    assert asked.rerank_config is None
