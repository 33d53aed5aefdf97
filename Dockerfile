# syntax=docker/dockerfile:1
# irg serve in a container: docs/deploy.md.
#
#   docker build -t irg .                                   for the CPU
#   docker build -t irg --build-arg TORCH=cu128 .           for CUDA 12.8 (the driver comes from the host)
#   docker build -t irg --build-arg EXTRAS=serve,scale .    with Ray Serve

ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build

# cpu, or a CUDA version as PyTorch's index spells it: cu126, cu128, cu130
ARG TORCH=cpu
ARG TORCH_VERSION=2.13.*
ARG EXTRAS=serve

WORKDIR /src
RUN python -m venv /opt/irg
ENV PATH=/opt/irg/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN pip install "torch==${TORCH_VERSION}" --index-url "https://download.pytorch.org/whl/${TORCH}"
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
RUN pip install ".[${EXTRAS}]" -c constraints.txt

FROM python:${PYTHON}-slim
# models that are downloaded and official texts are kept here: mount a volume
ENV PATH=/opt/irg/bin:$PATH HF_HOME=/models/hub IRG_CACHE=/models/irg PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 irg && mkdir /models && chown irg /models
COPY --from=build /opt/irg /opt/irg
USER 1000
VOLUME /models
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=10m \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["irg"]
# other machines can reach the server, so keys must be given: -e IRG_API_KEYS=... or --api-keys FILE
CMD ["serve", "--host", "0.0.0.0", "--model", "mini"]
