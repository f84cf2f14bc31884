"""potstill: verified training data from any teacher model.

The library behind the Snakemake workflow of the same name. It imports nothing of Snakemake; each
stage is a function from files to files, which a rule's script and the command line call alike.
"""

__version__ = "0.1.0"
