import dataclasses

import pytest
import torch

from retrieval import checkpoint
from retrieval.configs.describe import DelfConfig, DelgConfig
from retrieval.errors import InputError
from retrieval.networks.create import create, resolve_config
from retrieval.networks.delf import Delf
from retrieval.networks.delg import Delg

CONFIG = DelgConfig(reduction=True, fm_reduction_dim=16, fc_output_dim=24, attention_dim=32)


def network():
    torch.manual_seed(0)
    return Delg(CONFIG, "none")


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        (CONFIG, ("backbone", "global_head", "attention", "autoencoder")),
        (DelfConfig("resnet18", attention="learned"), ("backbone", "pool", "attention")),
    ],
)
def test_create_says_what_is_random(tmp_path, config, missing):
    created = create(config, "none")
    assert created.network.config == config
    assert created.report.loaded == ()
    assert created.report.missing == missing
    assert created.whitenings == {}
    with pytest.raises(InputError, match=r"--pretrained .*absent.pth: neither a file nor one of"):
        create(config, str(tmp_path / "absent.pth"))


def test_another_config_is_named_by_its_flags(tmp_path):
    path = tmp_path / "w.pth"
    checkpoint.save_model(path, network())
    cases = [
        ({"backbone": "resnet34"}, "--backbone resnet34, but the file has resnet18"),
        ({"fc_output_dim": 25}, "--fc_output_dim 25, but the file has 24"),
        ({"reduction": False}, "--reduction False, but the file has True"),
    ]
    for change, message in cases:
        with pytest.raises(InputError, match=message):
            create(dataclasses.replace(CONFIG, **change), str(path))
    other = dataclasses.replace(CONFIG, train_all_layers=True)
    assert create(other, str(path)).report.missing == ()


def test_another_shape_without_a_config_lists_keys(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(network().state_dict(), path)
    wrong = dataclasses.replace(CONFIG, fc_output_dim=25, fm_reduction_dim=8)
    with pytest.raises(InputError) as caught:
        create(wrong, str(path))
    assert "global_head.linear.weight (24, 512), expected (25, 512)" in str(caught.value)
    assert "autoencoder.reduce.bias (16,), expected (8,)" in str(caught.value)
    assert "--fm_reduction_dim" in str(caught.value)
    with pytest.raises(InputError, match=r"unexpected: autoencoder\.reduce\.weight"):
        create(dataclasses.replace(CONFIG, reduction=False), str(path))


def test_another_delf_is_named_by_its_flags(tmp_path):
    path, attention = str(tmp_path / "w.pth"), DelfConfig("resnet18", attention="learned")
    checkpoint.save_model(path, Delf(attention, "none"))
    cases = [
        ({"arch": "resnet34"}, "--arch resnet34, but the file has resnet18"),
        ({"pool": "mac"}, "--pool mac, but the file has gem"),
        ({"regional": True}, "--regional True, but the file has False"),
        ({"layer": "layer3", "local_layer": "layer3"}, "--layer layer3, but the file has layer4"),
    ]
    for change, message in cases:
        with pytest.raises(InputError, match=message):
            create(dataclasses.replace(attention, **change), path)
    other = dataclasses.replace(attention, local_layer="layer3")
    assert create(other, path).report.missing == ()
    checkpoint.save_model(path, Delf(DelfConfig("resnet18"), "none"))
    assert create(attention, path).report.missing == ("attention",)


def test_what_flags_leave_open_is_as_in_the_file(tmp_path):
    path = str(tmp_path / "w.pth")
    checkpoint.save_model(path, network())
    assert resolve_config({}, path) == CONFIG
    assert resolve_config({"norm_window": 5}, path) == dataclasses.replace(CONFIG, norm_window=5)
    assert resolve_config({"head": "gem"}, "imagenet") == DelgConfig(head="gem")
    with pytest.raises(InputError, match="neither a file nor one of"):
        resolve_config({}, str(tmp_path / "absent.pth"))
