import os
import signal

import pytest
import torch

from retrieval import devices
from retrieval.errors import InputError
from retrieval.training import processes
from retrieval.training.processes import StopSignal, World


def test_mixed_seeds_are_stable_and_differ():
    assert processes.mix_seed(1, 2, 3) == processes.mix_seed(1, 2, 3)
    seeds = {processes.mix_seed(a, b, c) for a in range(5) for b in range(5) for c in range(5)}
    assert len(seeds) == 125
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_device_that_is_not_there_is_an_error():
    assert devices.choose_device("cpu").type == "cpu"
    with pytest.raises(InputError, match="--device nonsense"):
        devices.choose_device("nonsense")
    if not torch.cuda.is_available():
        assert devices.choose_device("auto").type == "cpu"
        with pytest.raises(InputError, match=r"--device cuda.*--device cpu"):
            devices.choose_device("cuda")


def test_auto_precision_is_bf16_only_where_the_processor_has_it(monkeypatch):
    cpu = torch.device("cpu")
    for units, chosen in (
        (["avx2"], "fp32"),
        (["avx2", "avx512_bf16"], "bf16"),
        (["bf16"], "bf16"),
    ):
        has = dict.fromkeys(units, True)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has)
        assert devices.settled("auto", cpu) == chosen
        assert devices.settled("fp32", cpu) == "fp32"
        with devices.autocast(cpu, "auto"):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if chosen == "bf16" else torch.float32)


def test_the_first_signal_is_noted_and_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert not stop.number
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_batch_is_shared_out_evenly_or_not_at_all():
    assert World(size=3).share_of(12) == 4
    with pytest.raises(InputError, match="--batch_size 4 cannot be shared by 3 processes"):
        World(size=3).share_of(4)


def test_alone_there_is_nobody_to_gather_from():
    assert World().gather("value") == ["value"]
