# One image for workers, the MLflow server and the Optuna dashboard.
# On a GPU machine build with --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 or leave torch's default.
ARG BASE=python:3.11-slim
FROM ${BASE}

ARG TORCH_INDEX=""
WORKDIR /opt/anitune
COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY trainer trainer
COPY storage storage
COPY search search
COPY dashboards dashboards
RUN pip install --no-cache-dir -c requirements.lock ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} torch \
    && pip install --no-cache-dir -c requirements.lock ".[postgres]"

RUN useradd --create-home --uid 10001 anitune && mkdir /data && chown anitune /data
USER anitune
ENV ANITUNE_HOME=/data
WORKDIR /data
ENTRYPOINT ["anitune"]
