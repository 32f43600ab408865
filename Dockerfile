# Builds the package with its CUDA kernels and runs the demo; add `--gpus all` to run on a GPU.
#   docker build -t trt_resa . && docker run --rm trt_resa
FROM python:3.12-bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/trt_resa
COPY . .
RUN make .venv/.installed
CMD ["make", "demo"]
