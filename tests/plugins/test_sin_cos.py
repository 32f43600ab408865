"""sin_cos.h on the host: the fp32 operations of the GPU, measured against double precision."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

KERNELS = Path(__file__).resolve().parents[2] / "plugins" / "kernels"
SOURCE = """
#include "sin_cos.h"
extern "C" void run(const float* angle, float* sine, float* cosine, long count) {
  for (long i = 0; i < count; ++i) trt_resa::sin_cos(angle[i], sine + i, cosine + i);
}
"""


@pytest.fixture(scope="module")
def sin_cos(tmp_path_factory):
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler is installed")
    folder = tmp_path_factory.mktemp("sin_cos")
    (folder / "sin_cos.cpp").write_text(SOURCE)
    # fmaf stays one rounding whatever the flags; other products must not be contracted.
    command = [compiler, "-O2", "-ffp-contract=off", "-shared", "-fPIC", f"-I{KERNELS}"]
    command += ["-o", str(folder / "sin_cos.so"), str(folder / "sin_cos.cpp")]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(folder / "sin_cos.so"))

    def run(angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        angles = np.ascontiguousarray(angles, dtype=np.float32)
        sine, cosine = np.empty_like(angles), np.empty_like(angles)
        library.run(
            *(ctypes.c_void_p(array.ctypes.data) for array in (angles, sine, cosine)),
            ctypes.c_long(angles.size),
        )
        return sine, cosine

    return run


def worst_error(sin_cos, angles: np.ndarray) -> float:
    angles = angles.astype(np.float32)
    sine, cosine = sin_cos(angles)
    exact = angles.astype(np.float64)
    return float(max(np.abs(sine - np.sin(exact)).max(), np.abs(cosine - np.cos(exact)).max()))


@pytest.mark.parametrize(
    ("limit", "bound"), [(1.0, 1.3e-7), (1e3, 1.3e-7), (2.0**20, 1.3e-7), (2.0**21, 4e-7)]
)
def test_error_over_a_range(sin_cos, limit, bound):
    angles = np.random.default_rng(0).uniform(-limit, limit, 2_000_000)
    assert worst_error(sin_cos, angles) <= bound


@pytest.mark.parametrize("inv_freq", [1.0, 0.8660254, 0.1, 1e-3, 1e-6])
def test_error_at_every_position(sin_cos, inv_freq):
    positions = np.arange(1 << 20, dtype=np.float32)
    assert worst_error(sin_cos, positions * np.float32(inv_freq)) <= 1.3e-7


def test_error_around_multiples_of_half_pi(sin_cos):
    multiples = (np.arange(-650_000, 650_000) * (np.pi / 2)).astype(np.float32)
    for angles in (multiples, np.nextafter(multiples, -np.inf), np.nextafter(multiples, np.inf)):
        assert worst_error(sin_cos, angles) <= 1.3e-7


def test_zero(sin_cos):
    sine, cosine = sin_cos(np.zeros(1))
    assert (sine[0], cosine[0]) == (0.0, 1.0)
