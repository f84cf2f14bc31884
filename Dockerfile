# The image of a job on Kubernetes:  docker build -t registry.example.com/potstill:0.1.0 .
FROM python:3.11-slim
COPY . /opt/potstill
RUN pip install --no-cache-dir '/opt/potstill[kubernetes]' && rm -rf /opt/potstill
# Jobs run as nobody: the working directory is a volume of the pod, the home only holds Snakemake's caches.
ENV HOME=/tmp/home XDG_CACHE_HOME=/tmp/home/.cache
RUN mkdir -p /tmp/home && chmod 1777 /tmp/home
WORKDIR /workdir
