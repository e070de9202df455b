"""What `init` sees of the machine that it sizes a recipe for."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.starter.machine_size import machine_size


def test_gpus_are_counted_as_the_driver_and_cuda_visible_devices_show_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 81559'\necho 'NVIDIA H100, 40000'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    size = machine_size()
    assert (size.num_gpus, size.gpu_name, size.gpu_bytes) == (
        2, "NVIDIA H100 80GB HBM3", 40000 << 20
    )  # fmt: skip
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert machine_size().num_gpus == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert "no GPU" in str(machine_size())
    program.write_text("#!/bin/sh\nexit 9\n")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert machine_size().num_gpus == 0
