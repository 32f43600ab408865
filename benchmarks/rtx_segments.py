"""Time one inner segment of Qwen2.5-7B (o, gate_up, down, qkv) as a TensorRT-RTX engine.

Each figure is the median over replays of a CUDA graph of one execution, captured after the shape's
kernels were compiled. Weights exceed the L2 cache (fp16 467 MB, INT4 121 MB), so every replay reads
them from memory. The baseline runs the same nodes in PyTorch with fp16 or bf16 weights, in a graph
too. Run on a GPU from the checkout: ``python benchmarks/rtx_segments.py``.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.builder.networks import TORCH_TYPES, network_of, random_weights, tiny_model
from trt_resa.builder.rtx import RtxOptions, build_segment
from trt_resa.model_config import RopeConfig
from trt_resa.network import Segment
from trt_resa.rtx import VERSION, create_context, load_engine, trt
from trt_resa.runtime.bench_timing import read_gb_per_s, replay_ms
from trt_resa.tables import segment_bytes
from trt_resa.values import ValueSpec, value_specs

MODEL = tiny_model(
    "qwen2",
    vocab_size=1024,
    hidden_size=3584,
    intermediate_size=18944,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    rope=RopeConfig(theta=1e6, rotary_dim=128),
)
OPTIONS = RtxOptions(
    max_batch_size=8,
    max_num_tokens=2048,
    rectify_interval=32,
    compute_capabilities=("8.0", "8.6", "8.9", "12.0"),
)
#: (optimisation profile, rows)
SHAPES = ((0, 1), (0, 8), (0, 32), (1, 32), (1, 512), (1, 2048))
FORMS = (("float16", None), ("bfloat16", None), ("float16", "symmetric"), ("float16", "offsets"),
         ("bfloat16", "symmetric"))  # fmt: skip
REPLAYS = 50


def replay_us(launch: Callable[[torch.cuda.Stream], object]) -> float:
    """Median microseconds of a graph that holds one launch."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            launch(stream)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            launch(stream)
        return replay_ms(graph.replay, REPLAYS, stream) * 1e3


def engine_us(
    engine: trt.ICudaEngine,
    segment: Segment,
    specs: Mapping[str, ValueSpec],
    profile: int,
    rows: int,
) -> float:
    context = create_context(engine)
    context.set_optimization_profile_async(profile, torch.cuda.current_stream().cuda_stream)
    alive = []
    for name in (*segment.inputs, *segment.outputs):
        tensor = torch.randn(rows, specs[name].columns, device="cuda").to(
            TORCH_TYPES[specs[name].dtype]
        )
        alive.append(tensor)
        if name in segment.inputs:
            assert context.set_input_shape(name, tuple(tensor.shape))
        assert context.set_tensor_address(name, tensor.data_ptr())
    torch.cuda.synchronize()

    def launch(stream: torch.cuda.Stream) -> None:
        assert context.execute_async_v3(torch.cuda.current_stream().cuda_stream)

    return replay_us(launch)


def torch_us(weights: dict[str, torch.Tensor], dtype: str, rows: int) -> float:
    """The nodes of the segment as PyTorch runs them."""
    w = {name: tensor.cuda() for name, tensor in weights.items()}
    size = {"device": "cuda", "dtype": TORCH_TYPES[dtype]}
    attention, residual = (torch.randn(rows, MODEL.hidden_size, **size) for _ in range(2))
    linear, norm = torch.nn.functional.linear, torch.nn.functional.rms_norm

    def launch(_: torch.cuda.Stream) -> torch.Tensor:
        x = residual + linear(attention, w["layers.0.o.weight"])
        y = norm(x, x.shape[-1:], w["layers.0.mlp_norm.weight"], 1e-5)
        gate, up = linear(y, w["layers.0.gate_up.weight"]).chunk(2, dim=-1)
        x = x + linear(torch.nn.functional.silu(gate) * up, w["layers.0.down.weight"])
        y = norm(x, x.shape[-1:], w["layers.1.input_norm.weight"], 1e-5)
        return linear(y, w["layers.1.qkv.weight"], w["layers.1.qkv.bias"])

    with torch.inference_mode():
        return replay_us(launch)


def main() -> None:
    print(
        f"GPU: {torch.cuda.get_device_name()}; TensorRT-RTX {VERSION}, PyTorch {torch.__version__}"
    )
    ceiling = read_gb_per_s()
    print(f"ceiling, reading 2 GiB: {ceiling:.0f} GB/s")
    baseline: dict[tuple[str, int], float] = {}
    for dtype, int4 in FORMS:
        segment = network_of(MODEL, dtype, int4).segments()[1]
        weights = random_weights(segment.weights, seed=0)
        specs = value_specs(network_of(MODEL, dtype, int4), MODEL, dtype)
        with tempfile.TemporaryDirectory() as work:
            file = Path(work) / "segment.engine"
            build_segment(segment, weights, specs, OPTIONS, file)
            engine = load_engine(file)
        moved = segment_bytes(segment)
        print(f"\n{dtype}, INT4 {int4 or 'none'}: {moved / 1e6:.0f} MB of weights")
        for profile, rows in SHAPES:
            time = engine_us(engine, segment, specs, profile, rows)
            if int4 is None and (dtype, rows) not in baseline:
                baseline[dtype, rows] = torch_us(weights, dtype, rows)
            rate = moved / time / 1e3
            print(
                f"  profile {profile}, {rows:>4} rows: {time:7.1f} us  {rate:6.0f} GB/s of weights "
                f"{rate / ceiling:4.0%} of the ceiling  (PyTorch {dtype}: "
                f"{baseline[dtype, rows]:.1f} us)",
                flush=True,
            )


if __name__ == "__main__":
    main()
