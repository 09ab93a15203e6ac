# The image of Ray's head and workers: Ray and this project's code, installed from the same lock file as on a laptop.
#
#     docker build -t ray-workload:dev .
#
# EXTRAS adds extras of pyproject.toml, e.g. "train data". UV_TORCH_BACKEND selects a build of torch, e.g. cpu; if it is
# empty, the build is that of the package index, with CUDA. BASE_IMAGE can be any Debian image with Python 3.11 and its
# venv module. Set PIP_INDEX_URL and UV_DEFAULT_INDEX to use a mirror of the package index. See docs/images.md.
ARG BASE_IMAGE=python:3.11-slim-bookworm


FROM ${BASE_IMAGE} AS build

# pip and uv use the system's CA certificates: to trust another CA, add it to the base image.
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    UV_NO_CACHE=1
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX

WORKDIR /build
COPY requirements-uv.txt requirements.txt ./

# uv is used in this stage only. The image keeps pip: Ray needs it for a job's `runtime_env: {pip: [...]}`.
RUN python3 -m venv /opt/uv \
    && /opt/uv/bin/python -m pip install -q --require-hashes -r requirements-uv.txt
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/python -m pip uninstall -q -y setuptools \
    && /opt/uv/bin/uv pip install -q --python /opt/venv/bin/python --compile-bytecode --require-hashes -r requirements.txt \
    && rm -f /opt/venv/.lock

ARG EXTRAS
ARG UV_TORCH_BACKEND
COPY pyproject.toml requirements-jobs.txt ./
RUN [ -z "$EXTRAS" ] || { \
        [ -n "$UV_TORCH_BACKEND" ] || unset UV_TORCH_BACKEND; \
        /opt/uv/bin/uv pip install -q --python /opt/venv/bin/python --compile-bytecode \
            -c requirements-jobs.txt -r pyproject.toml $(printf -- '--extra %s ' $EXTRAS) \
        && rm -f /opt/venv/.lock; \
    }


FROM ${BASE_IMAGE}

# The image's user cannot write bytecode, and the official Python image, unlike Debian's, has none: compile it here.
RUN useradd --uid 1000 --gid 100 --create-home --shell /bin/bash ray \
    && install -d -o 1000 -g 100 /home/ray/.cloudvolume /home/ray/.cloudvolume/secrets \
    && python3 -m compileall -q -x '/(test|tests|idlelib|lib2to3|turtledemo|ensurepip|(site|dist)-packages)/' \
        "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"

COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

WORKDIR /app
COPY client client
COPY jobs jobs
RUN chmod -R u=rwX,go=rX . && python -m compileall -q .

ARG VERSION=dev
LABEL org.opencontainers.image.title="ray-workload" \
      org.opencontainers.image.description="Ray with the ray-workload client and its example jobs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"

USER 1000:100
CMD ["/bin/bash"]
