"""The generation engine: requests, limits, the answer store, and the loop that keeps the wire full."""
