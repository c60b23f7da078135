# Distaff as a container, with the contract of docs/container.md:
#   docker build -t distaff .                              for CPUs
#   docker build -t distaff --build-arg EXTRA=cuda .       the wheels bring CUDA; the host needs its driver alone
#   docker build -t distaff --build-arg EXTRA=tpu .
ARG PYTHON=3.12

# The native kernels need a C++ compiler, which the image itself does not.
FROM python:${PYTHON}-bookworm AS build
WORKDIR /opt/distaff
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY model model
COPY checkpoints checkpoints
COPY runtime runtime
COPY server server
RUN pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt setuptools jaxlib && \
    pip wheel --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir wheels .

FROM python:${PYTHON}-slim-bookworm

# An extra of pyproject.toml: nothing, cuda or tpu.
ARG EXTRA=

WORKDIR /opt/distaff
COPY constraints.txt ./
COPY --from=build /opt/distaff/wheels wheels
RUN pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt \
    "distaff[${EXTRA}] @ file://$(echo "${PWD}"/wheels/*.whl)"

# Models, stores and compiled steps; a volume here spares the next start all three.
RUN useradd --uid 1000 --create-home distaff && install --directory --owner=distaff /data
VOLUME /data
ENV XDG_CACHE_HOME=/data HF_HOME=/data/huggingface
# What NVIDIA's runtime gives to a container whose image does not say so itself; without meaning elsewhere.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

USER 1000
WORKDIR /home/distaff
EXPOSE 8080
STOPSIGNAL SIGTERM
ENTRYPOINT ["distaff", "endpoint"]
