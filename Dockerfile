# UnlearnKit with its GPU extras.
#   docker build -t unlearnkit .
#   docker run --rm --gpus all -v "$PWD/workspace:/workspace" unlearnkit run tofu/npo
# Runs are written to /workspace/runs, downloaded models and data to /workspace/.cache: mount /workspace to keep both. The folder must
# be writable for user 1001, or add `--user "$(id -u):$(id -g)"`.
# The torch wheel brings its own CUDA libraries; the base image tells the container runtime which driver is needed.
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04

# gcc and the Python headers: triton compiles a small launcher for each kernel when it is first used.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates gcc libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/unlearnkit/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1

# torch is most of the image and changes least: a layer of its own.
COPY constraints.txt /src/
RUN python3 -m venv /opt/unlearnkit \
    && pip install -c /src/constraints.txt "$(grep '^torch==' /src/constraints.txt)"

COPY pyproject.toml README.md LICENSE /src/
COPY unlearnkit /src/unlearnkit
COPY recipes /src/recipes
COPY eval /src/eval
COPY launch /src/launch
RUN pip install -c /src/constraints.txt "/src[deepspeed,quantization,eval]" \
    && unlearnkit --help > /dev/null

# HOME is in /workspace too, so that caches have a place whatever user the container is started as.
RUN useradd --uid 1001 --home-dir /workspace --create-home unlearnkit
ENV HOME=/workspace \
    HF_HOME=/workspace/.cache/huggingface \
    HF_HUB_DISABLE_TELEMETRY=1
USER unlearnkit
WORKDIR /workspace

ENTRYPOINT ["unlearnkit"]
CMD ["--help"]
