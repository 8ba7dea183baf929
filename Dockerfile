# One image for all services (`hubflow serve NAMES...` chooses), and the small one that brings CommandWrapper into jobs' pods.
#   docker build -t hubflow .
#   docker build -t hubflow-wrapper --target wrapper .
# Plain enough for every builder. Built for the machine's own processor; PROCESSORS: those of jobs on Docker engines.
ARG PYTHON=python:3.13-slim
ARG GO=golang:1.26

FROM ${GO} AS go
ARG PROCESSORS="amd64 arm64"
WORKDIR /build
COPY pyproject.toml ./
COPY scripts/go.sh scripts/wrapper.sh scripts/
COPY wrapper/ wrapper/
RUN PROCESSORS="$PROCESSORS" scripts/wrapper.sh \
 && mkdir /wrapper \
 && cp "wrapper/bin/hubflow-wrapper-linux-$(go env GOARCH)" /wrapper/hubflow-wrapper \
 && ln -s hubflow-wrapper /wrapper/thub

FROM scratch AS wrapper
COPY --from=go /wrapper/ /
USER 65532:65532
ENTRYPOINT ["/hubflow-wrapper"]

FROM ${PYTHON} AS packages
WORKDIR /build
RUN python -m venv --without-pip /venv && python -m venv /builder
COPY requirements/services.txt requirements/build.txt requirements/
RUN /builder/bin/pip --python /venv/bin/python install --no-cache-dir --require-hashes -r requirements/services.txt \
 && /builder/bin/pip install --no-cache-dir --require-hashes -r requirements/build.txt
# Descriptions of some 400 other services of AWS, two thirds of all that is installed.
RUN find /venv/lib/python3*/site-packages/botocore/data -mindepth 1 -maxdepth 1 -type d ! -name s3 ! -name sts -exec rm -r {} +
COPY pyproject.toml README.md LICENSE ./
COPY shared/ shared/
COPY services/ services/
COPY cli/ cli/
RUN /builder/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
 && /builder/bin/pip --python /venv/bin/python install --no-cache-dir --no-deps dist/*.whl

FROM ${PYTHON}
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HUBFLOW_HTTP_HOST= HUBFLOW_RUNTIME_WRAPPER=/hubflow/wrapper
COPY --from=packages /venv /venv
COPY --from=go /build/wrapper/bin/ /hubflow/wrapper/
WORKDIR /hubflow
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["hubflow"]
CMD ["serve", "all"]
