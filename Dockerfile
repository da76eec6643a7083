# Two images from one file: `--target agent` and `--target portal`. Nothing in them is secret; state lives in the volume alone.

# Python 3.11 because lgpio, which reads the GPIO pins, has no wheels for a later one; both targets then share their layers.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
# What the base image trusts is trusted while building too: a closed network adds its authority there.
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 UV_SYSTEM_CERTS=1 UV_LINK_MODE=copy
WORKDIR /build
COPY requirements/bootstrap.txt requirements/
RUN python -m venv tools && tools/bin/python -m pip install --quiet --require-hashes -r requirements/bootstrap.txt

FROM builder AS wheel
COPY pyproject.toml README.md LICENSE ./
COPY agent agent
COPY services services
COPY portal portal
COPY emulator emulator
COPY systemd systemd
RUN tools/bin/hatchling build -t wheel -d dist

FROM builder AS agent-dependencies
COPY requirements/node.txt requirements/
RUN python -m venv --without-pip /opt/outstation \
    && VIRTUAL_ENV=/opt/outstation tools/bin/uv pip install --quiet --require-hashes --compile-bytecode -r requirements/node.txt

FROM builder AS portal-dependencies
COPY requirements/portal.txt requirements/
RUN python -m venv --without-pip /opt/outstation \
    && VIRTUAL_ENV=/opt/outstation tools/bin/uv pip install --quiet --require-hashes --compile-bytecode -r requirements/portal.txt

FROM builder AS program
COPY --from=wheel /build/dist dist
# Laid out as the virtual environment is, to be copied over it: a new release is a small layer on the same dependencies.
RUN python -m venv --without-pip /opt/outstation \
    && find /opt/outstation -type f > before \
    && VIRTUAL_ENV=/opt/outstation tools/bin/uv pip install --quiet --no-deps --no-index --compile-bytecode dist/*.whl \
    && xargs rm < before && find /opt/outstation -type l -delete

FROM ${PYTHON_IMAGE} AS base
ENV PATH=/opt/outstation/bin:$PATH \
    HOME=/var/lib/outstation \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# The numbers are fixed, so that a volume made by one release belongs to the next one too.
RUN groupadd --gid 10001 outstation \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/outstation --no-create-home --shell /usr/sbin/nologin outstation \
    && install -d -m 700 -o 10001 -g 10001 /var/lib/outstation
WORKDIR /var/lib/outstation
STOPSIGNAL SIGTERM
ENTRYPOINT ["outstation"]
LABEL org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.vendor="Outstation"

FROM base AS portal
COPY --from=portal-dependencies /opt/outstation /opt/outstation
COPY --from=program /opt/outstation /opt/outstation
LABEL org.opencontainers.image.title="Outstation portal" \
      org.opencontainers.image.description="Nodes, services and flows in the browser"
# PORTAL_* variables are the settings; the health check follows them.
ENV PORTAL_DATA=/var/lib/outstation PORTAL_HOST=0.0.0.0 PORTAL_PORT=8080
USER 10001:10001
VOLUME /var/lib/outstation
EXPOSE 8080
# The certificate is not looked at: it is for the portal's public name, and this asks it by its loopback address.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["python", "-c", "\
from os import environ; from ssl import _create_unverified_context; from urllib.request import urlopen; \
tls = environ.get('PORTAL_SELF_SIGNED', '0') not in ('', '0') or 'PORTAL_CERTIFICATE' in environ; \
urlopen(f'http{\"s\" * tls}://127.0.0.1:{environ[\"PORTAL_PORT\"]}/api/health', timeout=5, context=_create_unverified_context())"]
CMD ["portal", "run"]

FROM base AS agent
COPY --from=agent-dependencies /opt/outstation /opt/outstation
COPY --from=program /opt/outstation /opt/outstation
LABEL org.opencontainers.image.title="Outstation agent" \
      org.opencontainers.image.description="Runs this node's Python services and streams their messages to the cloud"
ENV OUTSTATION_STATE_DIR=/var/lib/outstation
USER 10001:10001
VOLUME /var/lib/outstation
HEALTHCHECK --interval=60s --timeout=10s --start-period=30s CMD ["outstation", "status", "--json"]
CMD ["run"]
