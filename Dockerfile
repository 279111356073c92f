# docker build -t lfads-torch . && docker run --rm -v "$PWD:/work" lfads-torch train my_data.h5
FROM python:3.11-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends gcc git libc6-dev
COPY . /src
RUN pip wheel --no-deps --wheel-dir /wheels /src

# The compiler stays behind. PyPI's torch brings gigabytes of CUDA; for the CPU alone, name PyTorch's
# index of CPU builds: docker build --build-arg PIP_EXTRA_INDEX_URL=... --build-arg TORCH=torch==2.13.0+cpu
FROM python:3.11-slim
COPY --from=build /wheels /wheels
COPY constraints.txt /wheels/
ARG PIP_EXTRA_INDEX_URL
ARG TORCH=torch
RUN pip install --no-cache-dir --constraint /wheels/constraints.txt "$TORCH" /wheels/*.whl
WORKDIR /work
ENTRYPOINT ["lfads"]
CMD ["--help"]
