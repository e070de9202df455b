"""The CPUs and GPUs of this machine, found without loading torch."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

_NVIDIA_SMI_TIMEOUT_S = 10
_QUERY = ["--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]


@dataclass(frozen=True)
class MachineSize:
    """CPU cores that this process may use by its CPU affinity, and the GPUs that it sees.

    `gpu_name` is the name of the first visible GPU, `gpu_bytes` the memory of the smallest.
    """

    num_cpus: int
    num_gpus: int = 0
    gpu_name: str = ""
    gpu_bytes: int = 0

    def __str__(self) -> str:
        cpus = f"{self.num_cpus} CPU core{'s' if self.num_cpus > 1 else ''}"
        if not self.num_gpus:
            return f"{cpus}, no GPU"
        return f"{cpus}, {self.num_gpus} x {self.gpu_name} ({self.gpu_bytes / 2**30:.0f} GiB)"


def machine_size() -> MachineSize:
    """Count cores and GPUs. A driver that does not answer within 10 seconds counts as no GPU."""
    affinity = getattr(os, "sched_getaffinity", None)
    num_cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    gpus = _visible(_gpus())
    if not gpus:
        return MachineSize(num_cpus)
    return MachineSize(num_cpus, len(gpus), gpus[0][0], min(size for _, size in gpus))


def _gpus() -> list[tuple[str, int]]:
    """Name and bytes of each NVIDIA GPU; empty without a working driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run(
            [program, *_QUERY],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_TIMEOUT_S,
            check=True,
        )
        lines = [line.rsplit(",", 1) for line in done.stdout.splitlines() if line.strip()]
        return [(name.strip(), int(mebibytes) << 20) for name, mebibytes in lines]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def _visible(gpus: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves; only the number of its entries is used."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return gpus
    devices = [device for device in chosen.split(",") if device.strip() and device.strip() != "-1"]
    return gpus[: len(devices)]
