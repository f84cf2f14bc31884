"""Configs and model files: closed schemas, defaults, and errors that say what to do."""
