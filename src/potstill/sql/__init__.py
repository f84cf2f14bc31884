"""What a model wrote as SQL: extract it, admit it, run it safely, compare its result."""
