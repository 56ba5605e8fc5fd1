# The image runs on the CPU as it is:
#   docker build -t anomaly-bench .
#   docker run --rm -v "$PWD/results:/work/results" anomaly-bench
# Another build of torch, such as one for your version of CUDA, comes from the index that PyTorch's installation page
# names for it; run that image with --gpus all:
#   docker build --build-arg TORCH_INDEX=URL -t anomaly-bench:cuda .
# Checked by hadolint. It has never been built: there was no Docker where it was written.
FROM python:3.12-slim

# empty: pip's default, which on x86-64 Linux also brings CUDA's libraries and runs without a GPU
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN if [ -n "$TORCH_INDEX" ]; then pip install --index-url "$TORCH_INDEX" "torch>=2.6" "torchvision>=0.21"; fi

WORKDIR /source
COPY pyproject.toml README.md CHANGELOG.md LICENSE ./
COPY anomaly_bench anomaly_bench
COPY hydra_plugins hydra_plugins
COPY conf conf
RUN pip install . && useradd --uid 1000 --create-home bench && mkdir /work && chown 1000 /work

USER 1000
WORKDIR /work
ENTRYPOINT ["anomaly-bench"]
