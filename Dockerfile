# clipspect in a container. From the repository root:
#   docker build -t clipspect .                      CPU
#   docker build -t clipspect:cuda --target cuda .   NVIDIA GPU (docker run --gpus all …)
#
# On x86_64 the package index has PyTorch with CUDA libraries (several GB), which runs on the CPU too. For a smaller CPU image
# pass the options of pip that select CPU builds: --build-arg TORCH_OPTIONS="--index-url …".
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE} AS install
ARG TORCH_OPTIONS=""
ARG EXTRAS=serve,ui,mqtt,video
COPY --from=wheel /wheels /wheels
# hadolint ignore=DL3013,SC2086
RUN python3 -m venv /opt/clipspect \
  && /opt/clipspect/bin/pip install --no-cache-dir ${TORCH_OPTIONS} torch torchvision \
  && wheel=$(echo /wheels/clipspect-*.whl) \
  && /opt/clipspect/bin/pip install --no-cache-dir "${wheel}[${EXTRAS}]"

FROM ${BASE} AS runtime
RUN useradd --create-home --uid 10001 clipspect \
  && mkdir -p /data /cache \
  && chown clipspect:clipspect /data /cache
COPY --from=install /opt/clipspect /opt/clipspect
ENV PATH=/opt/clipspect/bin:$PATH \
    CLIPSPECT_CACHE=/cache \
    HF_HUB_OFFLINE=1 \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /data
EXPOSE 8000
VOLUME ["/data", "/cache"]
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
  CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["clipspect"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]

FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM runtime AS cpu
ENV CUDA_VISIBLE_DEVICES=""
