# docker build -t lfads-torch . && docker run --rm -v "$PWD:/work" lfads-torch train my_data.h5
FROM python:3.11-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends gcc git libc6-dev
COPY . /src
RUN pip wheel --no-deps --wheel-dir /wheels /src

# The compiler stays behind. torch for the CPU: the one of PyPI brings gigabytes of CUDA.
FROM python:3.11-slim
COPY --from=build /wheels /wheels
COPY constraints.txt /wheels/
RUN pip install --no-cache-dir --constraint /wheels/constraints.txt \
    --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu /wheels/*.whl
WORKDIR /work
ENTRYPOINT ["lfads"]
CMD ["--help"]
