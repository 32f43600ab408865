"""The plugin on a GPU: both phases against the reference and the kernels' own API."""

from __future__ import annotations

import copy
import dataclasses

import pytest

torch = pytest.importorskip("torch")

from tests.plugins.dense_reference import DenseCase, dense_attention  # noqa: E402
from tests.plugins.reference import Case  # noqa: E402
from tests.plugins.sparse_case import TOLERANCE, Selecting, launch  # noqa: E402
from tests.plugins.tensorrt.conformance import BF16, HALF, Host, Plugin, Shapes  # noqa: E402
from tests.plugins.test_sparse_step import make_step, step_params  # noqa: E402
from trt_resa.kernels import KernelLibrary  # noqa: E402

pytestmark = pytest.mark.gpu

NAN = float("nan")
LAYERS, LAYER = 5, 3
GUARD = 4096


class Context:
    """An execution context: an attached plugin, its tensors and its workspace."""

    def __init__(self, host: Host, case: Case, settings: Selecting, *, dense: bool) -> None:
        rows, q_heads, head_dim = case.q.shape
        self.case = case
        self.dense = dense
        self.out = torch.full_like(case.q, NAN)
        self.shapes = Shapes(
            rows=rows,
            batch=case.kv_lens.shape[0],
            blocks=case.block_table.shape[1],
            phase=int(dense),
            layers=LAYERS,
            q_heads=q_heads,
            kv_heads=case.kv.shape[2],
            head_dim=head_dim,
            rotary_dim=case.rotary_dim,
            norm=case.q_norm is not None,
            model_type=HALF if case.q.dtype == torch.float16 else BF16,
        )
        fields = {
            "layer": LAYER,
            "q_heads": q_heads,
            "kv_heads": case.kv.shape[2],
            "head_dim": head_dim,
            "block_size": case.kv.shape[3],
            "rotary_dim": case.rotary_dim,
            "rope_scale": case.rope_scale,
            "norm_eps": case.norm_eps,
            "softmax_scale": head_dim**-0.5,
            **dataclasses.asdict(settings),
        }
        built = host.create(fields)
        assert built is not None, host.messages()
        tensors = self.shapes.tensors()
        assert built.configure(tensors), host.messages()
        size = built.workspace(tensors)
        engine = host.reload(built)
        assert engine is not None, host.messages()
        attached = engine.attach()
        assert attached is not None, host.messages()
        assert attached.shape(tensors), host.messages()
        self.host = host
        self.plugin: Plugin = attached
        self.size = size
        device = case.q.device
        self.workspace = torch.full((size + GUARD,), 0xA5, dtype=torch.uint8, device=device)
        # Only this layer's addresses are valid.
        self.kv_pool = torch.zeros(LAYERS, dtype=torch.int64, device=device)
        self.summary_pool = torch.zeros_like(self.kv_pool)
        self.kv_pool[LAYER] = case.kv.data_ptr()
        self.summary_pool[LAYER] = case.summary.data_ptr()

    def enqueue(self) -> None:
        """On torch's current stream."""
        case = self.case
        phase = self.kv_pool  # contents and address are never read
        tensors = [
            case.qkv,
            case.position_ids,
            case.cu_query_lens,
            case.kv_lens,
            case.block_table,
            phase,
            self.kv_pool,
            self.summary_pool,
            case.inv_freq,
        ]
        if case.q_norm is not None:
            tensors += [case.q_norm, case.k_norm]
        accepted = self.plugin.enqueue(
            self.shapes.tensors(),
            [tensor.data_ptr() for tensor in tensors],
            self.out.data_ptr(),
            self.workspace.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )
        assert accepted, self.host.messages()

    def assert_guard(self) -> None:
        assert bool((self.workspace[self.size :] == 0xA5).all()), "written behind the workspace"


def direct_step(library: KernelLibrary, case: Case, settings: Selecting) -> torch.Tensor:
    """The same step through the kernel library; ``case`` becomes what it makes of it."""
    out = torch.full_like(case.q, NAN)
    launch(library, step_params(library, case, settings, out))
    return out


def direct_append(library: KernelLibrary, case: Case) -> None:
    launch(library, case.params())


def as_dense(case: Case, out: torch.Tensor) -> DenseCase:
    """``case`` as it stands after the append."""
    return DenseCase(
        q=case.q,
        cu_query_lens=case.cu_query_lens,
        kv_lens=case.kv_lens,
        block_table=case.block_table,
        kv=case.kv,
        out=out,
        softmax_scale=case.q.shape[2] ** -0.5,
    )


def direct_dense(library: KernelLibrary, case: Case) -> torch.Tensor:
    """Append and attention through the kernel library, which is given the cache's address."""
    direct_append(library, case)
    out = torch.full_like(case.q, NAN)
    as_dense(case, out).launch(library)
    return out


def same_bits(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.equal(actual.view(torch.int16), expected.view(torch.int16))


def assert_close_to_dense(case: Case, out: torch.Tensor) -> None:
    """To the attention after the append, in double precision."""
    expected = dense_attention(as_dense(case, out))
    assert torch.equal(out.isnan(), expected.isnan())
    error = (out.double() - expected).nan_to_num()
    assert float(error.norm() / expected.nan_to_num().norm()) <= TOLERANCE[out.dtype]


SHAPES = [
    pytest.param({"q_heads": 28, "kv_heads": 4}, id="Qwen2.5-7B"),
    pytest.param({"q_heads": 32, "kv_heads": 8, "qk_norm": True}, id="Qwen3-8B"),
    pytest.param({"q_heads": 9, "kv_heads": 3, "head_dim": 64}, id="SmolLM2"),
    pytest.param(
        {"q_heads": 8, "kv_heads": 2, "dtype": torch.bfloat16, "block_size": 32}, id="bf16"
    ),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("settings", [Selecting(), Selecting(keep_ratio=1.0)], ids=["0.1", "1.0"])
def test_sparse_step(library, host, shape, settings):
    """The bits of the kernels' own API; with every block kept, dense attention."""
    case = make_step([(9000, 1), (700, 1), (16, 1), (1, 1)], **shape)
    direct = copy.deepcopy(case)
    context = Context(host, case, settings, dense=False)
    for _ in range(3):
        context.enqueue()
    torch.cuda.synchronize()
    expected = direct_step(library, direct, settings)
    assert same_bits(context.out, expected)
    assert same_bits(case.kv, direct.kv)
    assert same_bits(case.summary, direct.summary)
    context.assert_guard()
    if settings.keep_ratio == 1.0:
        assert_close_to_dense(direct, context.out)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "sequences", [[(3000, 32), (500, 32), (17, 17)], [(1500, 700)]], ids=["windows", "prefill"]
)
def test_dense_pass(library, host, shape, sequences):
    """The bits of a launch that is given the cache's address: the same kernels run."""
    case = make_step(sequences, **shape)
    direct = copy.deepcopy(case)
    context = Context(host, case, Selecting(), dense=True)
    context.enqueue()
    torch.cuda.synchronize()
    expected = direct_dense(library, direct)
    assert same_bits(context.out, expected)
    assert same_bits(case.kv, direct.kv)
    assert same_bits(case.summary, direct.summary)
    assert_close_to_dense(direct, context.out)
    context.assert_guard()


@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
def test_captured_graph_replays_with_other_contents(library, host, dense):
    rows = 8 if dense else 1
    sequences = [(5000, rows), (300, rows)]
    case = make_step(sequences, q_heads=28, kv_heads=4)
    other = make_step([(4100, rows), (900, rows)], q_heads=28, kv_heads=4, seed=1)
    other.block_table = torch.nn.functional.pad(
        other.block_table, (0, case.block_table.shape[1] - other.block_table.shape[1]), value=-1
    )
    context = Context(host, case, Selecting(), dense=dense)
    context.enqueue()  # as TensorRT asks for before a capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        context.enqueue()

    expected = Context(host, copy.deepcopy(other), Selecting(), dense=dense)
    expected.enqueue()
    for name in ("qkv", "position_ids", "kv_lens", "block_table"):
        getattr(case, name).copy_(getattr(other, name))
    # Another cache, too: its address is data.
    context.kv_pool[LAYER] = other.kv.data_ptr()
    context.summary_pool[LAYER] = other.summary.data_ptr()
    context.out.fill_(NAN)
    graph.replay()
    torch.cuda.synchronize()
    assert same_bits(context.out, expected.out)
    assert same_bits(other.kv, expected.case.kv)


def test_two_contexts_on_two_streams(library, host):
    """A sparse step and a dense pass, and two sparse steps, side by side many times."""
    sequences = [(20000, 1), (700, 1)]
    contexts = [
        Context(
            host, make_step(sequences, q_heads=28, kv_heads=4, seed=1), Selecting(), dense=False
        ),
        Context(
            host, make_step(sequences, q_heads=28, kv_heads=4, seed=2), Selecting(), dense=False
        ),
        Context(host, make_step([(2000, 64)], q_heads=28, kv_heads=4), Selecting(), dense=True),
    ]
    alone = []
    for context in contexts:
        context.enqueue()
        torch.cuda.synchronize()
        alone.append(context.out.clone())
    streams = [torch.cuda.Stream() for _ in contexts]
    for _ in range(50):
        for context, stream in zip(contexts, streams, strict=True):
            with torch.cuda.stream(stream):
                context.enqueue()
    torch.cuda.synchronize()
    for context, expected in zip(contexts, alone, strict=True):
        assert same_bits(context.out, expected)
        context.assert_guard()
