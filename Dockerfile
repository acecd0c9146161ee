# edge-bridge, and its receiver: the same image, another command.
FROM python:3.12-slim AS build
WORKDIR /src
RUN python -m venv /opt/edge-bridge
COPY requirements/runtime.lock requirements/
RUN /opt/edge-bridge/bin/pip install --no-cache-dir --require-hashes -r requirements/runtime.lock
COPY pyproject.toml README.md LICENSE ./
COPY bridge bridge
# The build backend came with the lock, so nothing is fetched here; the image does not need it.
RUN /opt/edge-bridge/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && /opt/edge-bridge/bin/pip uninstall --yes setuptools

FROM python:3.12-slim
COPY --from=build /opt/edge-bridge /opt/edge-bridge
# The folder belongs to the user in the image, so that a new named volume does too.
RUN groupadd --gid 10001 bridge \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/edge-bridge bridge \
    && install -d -m 0700 -o bridge -g bridge /var/lib/edge-bridge
ENV PATH=/opt/edge-bridge/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    BRIDGE_QUEUE__PATH=/var/lib/edge-bridge
USER 10001:10001
WORKDIR /var/lib/edge-bridge
VOLUME /var/lib/edge-bridge
ENTRYPOINT ["edge-bridge"]
CMD ["run"]
