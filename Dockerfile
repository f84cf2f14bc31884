# The image of a job on Kubernetes:  docker build -t registry.example.com/potstill:0.1.0 .
FROM python:3.11-slim
COPY . /opt/potstill
# Every pod begins with `pip install --target … snakemake-storage-plugin-s3`, which Snakemake's plugin puts before each job.
# The wheel of it lies in the image, so that no pod asks a package index, and none gets other versions than the image's.
RUN pip download --no-cache-dir --no-deps --dest /opt/wheels 'snakemake-storage-plugin-s3>=0.3.6' \
    && pip install --no-cache-dir --find-links /opt/wheels '/opt/potstill[kubernetes]' \
    && rm -rf /opt/potstill
ENV PIP_NO_INDEX=1 PIP_NO_DEPS=1 PIP_FIND_LINKS=/opt/wheels PIP_DISABLE_PIP_VERSION_CHECK=1
# The working directory is a volume of the pod; the home holds caches only, and may be written by any user.
ENV HOME=/tmp/home XDG_CACHE_HOME=/tmp/home/.cache
RUN mkdir -p /tmp/home && chmod 1777 /tmp/home
WORKDIR /workdir
