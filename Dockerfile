# The library, its command and the example services. For a service of your own:
#   FROM meshrpc
#   COPY shop/ shop/
#   CMD ["run", "shop.app:service"]
FROM python:3.11-slim AS build

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY meshrpc/ meshrpc/
COPY services/ services/
COPY policies/ policies/
RUN python -m venv /opt/meshrpc \
    && /opt/meshrpc/bin/pip install --no-cache-dir --disable-pip-version-check '.[all]'


FROM python:3.11-slim

# A volume mounted over the state folder takes its owner from here.
RUN useradd --system --uid 10001 --create-home meshrpc \
    && install --directory --owner meshrpc --mode 0700 /var/lib/meshrpc

COPY --from=build /opt/meshrpc /opt/meshrpc
ENV PATH=/opt/meshrpc/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MESHRPC_STATE_DIR=/var/lib/meshrpc

# `meshrpc run MODULE:SERVICE` imports from the current folder.
WORKDIR /app
COPY services/ services/

USER meshrpc
VOLUME /var/lib/meshrpc
STOPSIGNAL SIGTERM
ENTRYPOINT ["meshrpc"]
CMD ["--help"]
