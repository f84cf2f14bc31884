"""Fakes that are real servers: each runs as `python -m tests.servers.NAME` on loopback."""
