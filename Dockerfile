# One image for all services: `hubflow serve NAMES...` chooses. Built for the machine's own architecture.
#   docker build -t hubflow .
ARG PYTHON=python:3.12-slim
ARG GO=golang:1.26

FROM ${GO} AS wrapper
WORKDIR /wrapper
COPY wrapper/ .
RUN for arch in amd64 arm64; do \
      CGO_ENABLED=0 GOARCH=$arch go build -trimpath -ldflags '-s -w' -o bin/hubflow-wrapper-linux-$arch . || exit 1; \
    done

FROM ${PYTHON} AS packages
WORKDIR /hubflow
RUN python -m venv /venv
COPY requirements/runtime.txt requirements/
RUN /venv/bin/pip install --no-cache-dir --require-hashes -r requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY shared/ shared/
COPY services/ services/
COPY cli/ cli/
RUN /venv/bin/pip install --no-cache-dir --no-deps .

FROM ${PYTHON}
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HUBFLOW_HTTP_HOST=0.0.0.0 HUBFLOW_RUNTIME_WRAPPER=/hubflow/wrapper/bin
COPY --from=packages /venv /venv
COPY --from=wrapper /wrapper/bin/ /hubflow/wrapper/bin/
WORKDIR /hubflow
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["hubflow"]
CMD ["serve", "all"]
