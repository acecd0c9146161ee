# edge-bridge, and its receiver: the same image, another command. Nothing in it is written to but the queue's volume, so
# it runs with a read-only root; no shell is used after the build.
FROM python:3.12-slim AS build
WORKDIR /src
COPY requirements/runtime.lock requirements/
# Without pip in the environment: pip is asked from outside. zstandard brings its library twice, 12 MB each; CPython
# uses the other one.
RUN python -m venv --without-pip /opt/edge-bridge \
    && pip --python /opt/edge-bridge/bin/python install --no-cache-dir --require-hashes --no-deps -r requirements/runtime.lock \
    && rm /opt/edge-bridge/lib/python3.*/site-packages/zstandard/_cffi.*.so
COPY pyproject.toml README.md LICENSE ./
COPY bridge bridge
# The build backend came with the lock, so nothing is fetched here; the image does not need it.
RUN pip --python /opt/edge-bridge/bin/python install --no-cache-dir --no-deps --no-build-isolation . \
    && pip --python /opt/edge-bridge/bin/python uninstall --yes setuptools \
    && install -d -m 0700 -o 10001 -g 10001 /queue

FROM python:3.12-slim
LABEL org.opencontainers.image.title="edge-bridge" \
      org.opencontainers.image.description="Carries predictions from a local MQTT broker to the cloud through a disk queue, and loses none." \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/edge-bridge /opt/edge-bridge
# The folder belongs to the user in the image, so that a new named volume does too.
COPY --from=build --chown=10001:10001 /queue /var/lib/edge-bridge
ENV PATH=/opt/edge-bridge/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    BRIDGE_QUEUE__PATH=/var/lib/edge-bridge \
    SQLITE_TMPDIR=/var/lib/edge-bridge
# By number: Kubernetes sees that it is not root. No account is needed for it.
USER 10001:10001
WORKDIR /var/lib/edge-bridge
VOLUME /var/lib/edge-bridge
# For the bridge where web.port is 8080 or set by the environment; the receiver has another one in docker-compose.yml.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, http.client as http; probe = http.HTTPConnection('127.0.0.1', int(os.environ.get('BRIDGE_WEB__PORT') or 8080), timeout=3); probe.request('GET', '/healthz'); raise SystemExit(probe.getresponse().status != 200)"]
ENTRYPOINT ["edge-bridge"]
CMD ["run"]
