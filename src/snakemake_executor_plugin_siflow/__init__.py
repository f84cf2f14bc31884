"""Snakemake executor plugin for SiFlow: jobs as tasks, over a shared volume, lost and doubled by nothing.

Snakemake finds it by its name; `snakemake --executor siflow` or a profile with `executor: siflow` uses it.
"""

from .executor import Executor, common_settings
from .settings import ExecutorSettings

__all__ = ["Executor", "ExecutorSettings", "common_settings"]
