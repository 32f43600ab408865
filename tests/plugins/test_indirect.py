"""Pools whose addresses are data. test_enqueue.py launches all kernels with them."""

from __future__ import annotations

import dataclasses

import pytest

from tests.plugins.test_library import status_of, valid_params
from trt_resa.kernel_params import Status
from trt_resa.kernels import KernelLibrary

torch = pytest.importorskip("torch")

from tests.plugins.dense_reference import DenseCase, make_dense_case  # noqa: E402

NAN = float("nan")


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


def indirect_twin(case: DenseCase) -> DenseCase:
    """The same call, with kv given by a place that holds its address."""
    place = torch.tensor([case.kv.data_ptr()], device=case.kv.device)
    return dataclasses.replace(
        case, out=torch.full_like(case.out, NAN), workspace=None, place=place
    )


def same_bits(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.equal(actual.view(torch.int16), expected.view(torch.int16))


BATCHES = {
    "decode": [(5000, 1), (17, 1), (1, 1)],
    "windows": [(30001, 32), (500, 32), (17, 17), (0, 0)],
    "prefill": [(2500, 1500), (130, 130)],
}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block_size", [16, 32, 64])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
@pytest.mark.parametrize("batch", BATCHES)
def test_dense_attention_gives_the_bits_of_a_direct_launch(
    library, batch, head_dim, block_size, dtype
):
    """Kernels differ in the order of their sums, so the same ones ran."""
    case = make_dense_case(
        BATCHES[batch], head_dim=head_dim, block_size=block_size, dtype=dtype, padding_rows=3
    )
    case.launch(library)
    twin = indirect_twin(case)
    twin.launch(library)
    torch.cuda.synchronize()
    assert same_bits(twin.out, case.out)


@pytest.mark.gpu
@pytest.mark.parametrize("shift", [16, 112])
def test_a_workspace_is_used_to_its_end_wherever_it_lies(library, shift):
    """Tensor maps are aligned to 128, the workspace to 16."""
    case = make_dense_case([(3000, 32)])
    case.launch(library)
    twin = indirect_twin(case)
    size = library.workspace_bytes(twin.params())
    guarded = torch.full((shift + size + 4096,), 0xA5, dtype=torch.uint8, device="cuda")
    assert guarded.data_ptr() % 128 == 0
    twin.workspace = guarded[shift:]
    twin.launch(library)
    torch.cuda.synchronize()
    assert same_bits(twin.out, case.out)
    assert bool((guarded[:shift] == 0xA5).all()), "written before the workspace"
    assert bool((guarded[shift + size :] == 0xA5).all()), "written behind the workspace"


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_every_launch_reads_the_address_again(library, head_dim):
    """Launches that follow at once and share a workspace, their cache another each time, and a
    captured one: no thread block may copy by the tensor map of the launch before."""
    cases = [make_dense_case([(4000, 32), (700, 32)], head_dim=head_dim, seed=s) for s in (0, 1, 2)]
    for case in cases:
        case.q.copy_(cases[0].q)
        case.launch(library)
    places = [torch.tensor([case.kv.data_ptr()], device="cuda") for case in cases]
    twin = indirect_twin(cases[0])
    twin.block_table = twin.block_table.clone()
    outs = torch.full((30, *twin.out.shape), NAN, dtype=twin.out.dtype, device="cuda")

    twin.launch(library)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        twin.launch(library)
    for turn in range(30):
        twin.place.copy_(places[turn % 3])
        twin.block_table.copy_(cases[turn % 3].block_table)
        if turn % 2:
            graph.replay()
        else:
            twin.launch(library)
        outs[turn].copy_(twin.out)
    torch.cuda.synchronize()
    for turn in range(30):
        assert same_bits(outs[turn], cases[turn % 3].out), turn
