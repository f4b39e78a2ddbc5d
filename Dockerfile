# Two images from one file:
#
#   docker build -t vinfer .                                    serves bundles: run half only, no EasyDeL
#   docker build -t vinfer-build --target build .               also builds them (`vinfer precompile`)
#   docker build -t vinfer --build-arg JAX_EXTRA=cuda12 .       for NVIDIA GPUs (cuda13, tpu likewise)
#
#   docker run --rm -v "$PWD/configs:/configs:ro" -v vinfer-cache:/var/cache/vinfer vinfer-build \
#       precompile /configs/model.yaml
#   docker run --rm -p 8000:8000 -v "$PWD/configs:/configs:ro" -v vinfer-cache:/var/cache/vinfer \
#       -v "$PWD/keys:/run/secrets/vinfer-keys:ro" vinfer \
#       serve /configs/model.yaml --set server.api_keys_file=/run/secrets/vinfer-keys
#
# vinfer is process 1 and handles SIGTERM: readiness becomes 503, running streams finish, exit code 0. Give the
# container a grace period longer than the server's drain timeout.
#
# The root file system may be read-only: only /var/cache/vinfer and /tmp are written. deploy/ has a compose file and
# manifests for Kubernetes, which ignores HEALTHCHECK.

FROM python:3.13-slim AS install-run
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/vinfer
ENV PATH=/opt/vinfer/bin:$PATH
WORKDIR /src
COPY requirements/run.txt requirements/run.txt
RUN pip install --no-deps --require-hashes --only-binary :all: -r requirements/run.txt
# The accelerator's plugin for the JAX that the lock pins. It is not in the lock, because nobody needs all of them.
ARG JAX_EXTRA=""
RUN if [ -n "$JAX_EXTRA" ]; then \
        pip install "jax[$JAX_EXTRA]==$(python -c 'from importlib.metadata import version; print(version("jax"))')"; \
    fi
COPY pyproject.toml README.md LICENSE ./
COPY vinfer vinfer
RUN pip install --no-deps --no-build-isolation .

FROM install-run AS install-build
COPY requirements/build.txt requirements/build.txt
RUN pip install --no-deps --require-hashes --only-binary :all: -r requirements/build.txt

FROM python:3.13-slim AS base
# A published port reaches 0.0.0.0 and not 127.0.0.1; on that address vinfer requires server.api_keys_file.
# Both override the YAML, so that EXPOSE and HEALTHCHECK below stay true.
ENV PATH=/opt/vinfer/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/var/cache/vinfer \
    VINFER_CACHE_DIR=/var/cache/vinfer \
    VINFER_XLA_CACHE=/var/cache/vinfer/xla \
    VINFER_SERVER__HOST=0.0.0.0 \
    VINFER_SERVER__PORT=8000
# Compiled programs are code: the cache belongs to the one user that runs it. Made before VOLUME, which would
# otherwise hand the directory to root. /bundles likewise, so that a new volume there is this user's.
RUN groupadd --system --gid 10001 vinfer \
    && useradd --system --gid 10001 --uid 10001 --home-dir /var/cache/vinfer --no-create-home vinfer \
    && install -d -o vinfer -g vinfer -m 0700 \
        /var/cache/vinfer /var/cache/vinfer/xla /bundles
# A number: Kubernetes cannot tell that a name is not root.
USER 10001:10001
WORKDIR /var/cache/vinfer
VOLUME /var/cache/vinfer
EXPOSE 8000
# http.client, because urllib would use a proxy from the environment.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["python", "-c", "import http.client, os; \
connection = http.client.HTTPConnection('127.0.0.1', int(os.environ['VINFER_SERVER__PORT']), timeout=4); \
connection.request('GET', '/liveness'); \
raise SystemExit(connection.getresponse().status != 200)"]
ENTRYPOINT ["vinfer"]
CMD ["--help"]

FROM base AS build
COPY --from=install-build /opt/vinfer /opt/vinfer
# A build does not listen on any port.
HEALTHCHECK NONE

# A plain `docker build` builds the last stage.
FROM base AS run
COPY --from=install-run /opt/vinfer /opt/vinfer
