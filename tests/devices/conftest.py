"""``other_device``: one that is not the CPU, on any machine; see ``other_device.cpp``."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

NAME = "other"


@pytest.fixture(scope="session")
def other_device(tmp_path_factory):
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(
        NAME,
        types.SimpleNamespace(
            is_available=lambda: True,
            current_device=lambda: 0,
            device_count=lambda: 1,
            is_initialized=lambda: True,
            _is_in_bad_fork=lambda: False,
            manual_seed_all=lambda seed: None,
            get_rng_state=lambda device=None: torch.get_rng_state(),
            set_rng_state=lambda state, device=None: None,
            get_amp_supported_dtype=list,
        ),
    )
    source = str(Path(__file__).with_name("other_device.cpp"))
    folder = str(tmp_path_factory.mktemp("other_device"))
    cpp_extension.load("other_device", [source], extra_cflags=["-O0"], build_directory=folder)
    torch.utils.generate_methods_for_privateuse1_backend()
    return torch.device(NAME, 0)
