"""Pools whose addresses are data: what the host can check. test_enqueue.py launches with them."""

from __future__ import annotations

import pytest

from tests.plugins.test_library import status_of, valid_params
from trt_resa.kernel_params import Status
from trt_resa.kernels import KernelLibrary


@pytest.mark.parametrize("pool", ["kv", "summary"])
def test_places_of_addresses_are_aligned_to_8(library: KernelLibrary, pool: str) -> None:
    def status(offset: int, indirect: int) -> int:
        """The check of norm_eps comes next: nothing is launched."""
        params = valid_params(indirect=indirect, norm_eps=0.0)
        setattr(params, pool, getattr(params, pool) + offset)
        return status_of(library, params)

    assert status(4, indirect=1) == Status.MISALIGNED_POINTER
    assert status(8, indirect=1) == Status.BAD_EPSILON
    assert status(8, indirect=0) == Status.MISALIGNED_POINTER
