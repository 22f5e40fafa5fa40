"""Where the work is done: devices, precision."""

import contextlib

import torch

from retrieval.configs.describe import Precision
from retrieval.errors import InputError


def choose_device(name: str) -> torch.device:
    """``auto`` is the GPU if there is one, else the CPU; an explicit device must exist."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: no such device; choose auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"--device {name}: no network runs there; choose auto, cpu, cuda or mps")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InputError(
            f"--device {name}: this machine offers {count} CUDA GPUs; use --device cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"--device {name}: this machine has no such GPU; use --device cpu")
    return device


def tells_of_full_memory(error: RuntimeError) -> bool:
    """Whether an error says that an allocation failed, on a GPU or for the CPU."""
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def settled(precision: Precision, device: torch.device) -> Precision:
    """What ``auto`` is on a device: bf16 where that multiplies it, else fp32.

    Processors without such units imitate bf16: a ResNet-18 then takes twelve times as long.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    units = ("avx512_bf16", "amx_bf16", "bf16")  # the last is ARM's
    return "bf16" if any(has.get(unit) for unit in units) else "fp32"


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager:
    """Mixed precision for a forward pass; losses and poolings keep themselves in float32."""
    precision = settled(precision, device)
    if precision == "fp32":
        return contextlib.nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype=dtype)
