"""The kernels' machine code for compute capability 9.0, as NVIDIA's disassembler shows it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from trt_resa.kernels import KernelLibrary


def disassembly(cuobjdump: Path, binary: Path, architecture: str) -> Iterator[str]:
    """Lines of the machine code."""
    path = f"{cuobjdump.parent}{os.pathsep}{os.environ['PATH']}"
    program = [str(cuobjdump), "-sass", "-arch", architecture, str(binary)]
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, text=True, env={**os.environ, "PATH": path}
    ) as process:
        assert process.stdout is not None
        yield from process.stdout
    assert process.returncode == 0, program


def test_descriptors_lie_in_pairs_of_registers(library: KernelLibrary, cuobjdump: Path) -> None:
    """ptxas 13.0 may put that of a copy with a cache hint elsewhere (``opaque_address``): the GPU
    then stops with "illegal instruction", where a sequence is long enough to get there."""
    function, copies, wrong = "", 0, set()
    for line in disassembly(cuobjdump, library.path, "sm_90a"):
        if "Function :" in line:
            function = line.split(":")[1].strip()
        for register in re.findall(r"LDGSTS.*desc\[UR(\d+)\]", line):
            copies += 1
            if int(register) % 2 != 0:
                wrong.add(function)
    if copies == 0:
        pytest.skip("the library holds no code for compute capability 9.0")
    assert not wrong, wrong
