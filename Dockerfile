# One image for workers, the MLflow server and the Optuna dashboard.
# PIP_OPTIONS tells pip where to find packages, for example another build of torch: --extra-index-url URL. The build includes a
# folder wheels beside this file, for machines without a package index: --no-index --find-links wheels.
ARG BASE=python:3.11.14-slim-bookworm
FROM ${BASE} AS build

ARG PIP_OPTIONS=""
WORKDIR /build
RUN python3 -m venv /opt/anitune
# Install the dependencies before copying our own files, so that a change in our files does not install torch again.
COPY requirements.lock pyproject.toml wheel[s] wheels/
RUN python3 -c 'import tomllib; p = tomllib.load(open("wheels/pyproject.toml", "rb"))["project"]; \
        print(*p["dependencies"], *p["optional-dependencies"]["postgres"], sep="\n")' >wanted \
    && /opt/anitune/bin/pip install --no-cache-dir ${PIP_OPTIONS} -c wheels/requirements.lock -r wanted
COPY pyproject.toml README.md LICENSE anitune.py ./
COPY trainer trainer
COPY storage storage
COPY search search
COPY dashboards dashboards
RUN /opt/anitune/bin/pip install --no-cache-dir ${PIP_OPTIONS} --no-deps .

FROM ${BASE}

COPY --from=build /opt/anitune /opt/anitune
COPY deploy/with-passwords /usr/local/bin/with-passwords
# A new volume takes its owner from the image.
RUN chmod 755 /usr/local/bin/with-passwords && useradd --create-home --uid 10001 anitune \
    && mkdir /data /mlflow-artifacts && chown anitune:anitune /data /mlflow-artifacts
USER 10001:10001
ENV PATH=/opt/anitune/bin:$PATH \
    ANITUNE_HOME=/data \
    MPLCONFIGDIR=/tmp/matplotlib \
    PGPASSFILE=/tmp/pgpass \
    NETRC=/tmp/netrc \
    PYTHONUNBUFFERED=1
WORKDIR /data
ENTRYPOINT ["with-passwords", "anitune"]
