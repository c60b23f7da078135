# Distaff as a container, with the contract of docs/container.md:
#   docker build -t distaff .                              for CPUs
#   docker build -t distaff --build-arg EXTRA=cuda .       the wheels bring CUDA; the host needs its driver alone
#   docker build -t distaff --build-arg EXTRA=tpu .
ARG PYTHON=3.12
FROM python:${PYTHON}-slim-bookworm

# An extra of pyproject.toml: nothing, cuda or tpu.
ARG EXTRA=

WORKDIR /opt/distaff
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY model model
COPY checkpoints checkpoints
COPY runtime runtime
COPY server server
RUN pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt \
    "distaff[${EXTRA}] @ file://${PWD}"

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
