"""Snakemake executor plugin for SiFlow: jobs as tasks, over a shared volume, lost and doubled by nothing.

Snakemake finds it by its name; `snakemake --executor siflow` or a profile with `executor: siflow` uses it.
"""

from .executor import Executor, common_settings
from .settings import ExecutorSettings

#: Must be the same in the tasks' image, if the plugin is installed there at all (the tasks do not need it).
__version__ = "0.1.0"

__all__ = ["Executor", "ExecutorSettings", "common_settings"]
