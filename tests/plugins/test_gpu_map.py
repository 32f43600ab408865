"""What the library finds out about where multiprocessors lie."""

from __future__ import annotations

import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.gpu

FIRST_LAUNCH_IS_CAPTURED = """
import copy
import torch
from tests.plugins.test_sparse_step import DEFAULT, check, make_step, step_params
from trt_resa.kernels import load_library

library = load_library()
case = make_step([(30000, 1)], q_heads=14)
before = copy.deepcopy(case)
out = torch.full_like(case.q, float("nan"))
params = step_params(library, case, DEFAULT, out)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    library.launch(params, torch.cuda.current_stream().cuda_stream)
graph.replay()
torch.cuda.synchronize()
check(library, case, before, DEFAULT, out)
"""


def run_python(program: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_halves(library):
    count = torch.cuda.get_device_properties().multi_processor_count
    gpcs = [library.gpc_of(i) for i in range(count)]
    assert library.gpc_of(-1) == library.gpc_of(count) == -1
    if torch.cuda.get_device_capability() < (9, 0):
        assert set(gpcs) == {-1}
        return
    if torch.cuda.get_device_capability() > (9, 0):
        pytest.skip("what the halves of later GPUs are like has not been seen")
    assert set(gpcs) <= set(range(8))
    assert gpcs[0:count:2] == gpcs[1:count:2], "the two of a TPC lie in one GPC"
    in_second = sum(gpc >= 4 for gpc in gpcs)
    assert 0.3 * count < in_second < 0.7 * count


def test_halves_are_found_again(library):
    """They are of the GPU, not of a run."""
    count = torch.cuda.get_device_properties().multi_processor_count
    here = "".join(str(int(library.gpc_of(i) >= 4)) for i in range(count))
    there = run_python(
        "from trt_resa.kernels import load_library\n"
        "library = load_library()\n"
        f"print(''.join(str(int(library.gpc_of(i) >= 4)) for i in range({count})))"
    )
    assert there.strip() == here


def test_first_launch_of_a_process_may_be_captured(library):
    run_python(FIRST_LAUNCH_IS_CAPTURED)
