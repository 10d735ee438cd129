"""The precision that passes run in is the fastest that the device has instructions for."""

import pytest
import torch

from csg_core.evaluation import fastest_precision


@pytest.mark.parametrize(
    ("avx512", "amx", "wanted"),
    [(True, True, "bf16"), (True, False, "bf16"), (False, True, "bf16"), (False, False, "fp32")],
)
def test_a_processor_with_instructions_for_bf16_uses_them(monkeypatch, avx512, amx, wanted):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert fastest_precision(torch.device("cpu")) == wanted
    assert fastest_precision(torch.device("meta")) == "fp32"


class _Current:
    """In place of ``torch.cuda.device``: which device is the current one."""

    index = 0

    def __init__(self, device):
        self._index = device.index

    def __enter__(self):
        _Current.index = self._index

    def __exit__(self, *_):
        _Current.index = 0


def test_a_card_that_only_emulates_bf16_does_without(monkeypatch):
    """As it is for the device that is asked for, and not for the current one."""

    def supported(including_emulation=True):
        return including_emulation or _Current.index == 1

    monkeypatch.setattr(torch.cuda, "device", _Current)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    found = [fastest_precision(torch.device("cuda", index)) for index in range(2)]
    assert found == ["fp32", "bf16"]
