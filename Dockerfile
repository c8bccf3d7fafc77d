# Runoff in one image: docker build -t runoff .        With CUDA: docker build --build-arg TORCH=cuda -t runoff:cuda .
# How to run it, and where the token is: docs/docker.md

FROM debian:bookworm-slim AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/runoff
ENV PATH=/opt/runoff/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /app
COPY pyproject.toml constraints.txt ./

# cpu: PyTorch's builds without CUDA, a fraction of the size, from PyTorch's own index. Where they can't be had, and with any
# other value, the builds of the default index are taken, which on x86-64 are those for CUDA; both train on a CPU.
ARG TORCH=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN if [ "$TORCH" = cpu ]; then \
      pip install --quiet --no-deps --retries 1 --timeout 20 --index-url "$TORCH_INDEX" -c constraints.txt torch torchvision || true; \
    fi
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > needed.txt \
 && pip install --quiet -c constraints.txt -r needed.txt \
 && if [ "$TORCH" = cpu ] && ! pip show torch | grep -q '^Version: .*+cpu$'; then \
      echo "$TORCH_INDEX did not give PyTorch, so the image has the larger builds of the default index."; \
    fi

COPY . .
RUN pip install --quiet --no-deps .

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --home-dir /data --shell /usr/sbin/nologin runoff \
 && install -d -o runoff -g runoff -m 700 /data
COPY --from=build /opt/runoff /opt/runoff
ENV PATH=/opt/runoff/bin:$PATH PYTHONUNBUFFERED=1 RUNOFF_HOME=/data RUNOFF_HOST=0.0.0.0 RUNOFF_PORT=8000
USER runoff
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s CMD ["python", "-c", \
  "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"RUNOFF_PORT\"]}/healthz', timeout=4)"]
CMD ["runoff", "serve", "--host", "0.0.0.0"]
