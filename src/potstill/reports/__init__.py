"""Reports of a run: quality, timing, cost, manifest, gates, the page, status and the comparison of two runs.

Every function reads files and writes files. Memory: counters are bounded, rows are streamed; where exact
percentiles are wanted, one float (8 bytes) per row is held.
"""
