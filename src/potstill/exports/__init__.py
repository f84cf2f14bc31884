"""Exports: the merged rows of a model as files that a trainer loads.

```
examples.py      one row -> the prompt and the answer of a training example
formats.py       one example -> the shape of each JSONL format
pairs.py         rows of one prompt -> chosen and rejected, by the verifier
index.py         what is remembered of every row between the two passes (some 60 bytes each)
split.py         groups, splits, limits per group, and the check that nothing leaks
decontaminate.py rows that repeat a benchmark
normalise.py     words, n-grams, SQL with its literals or names masked
columns.py       JSON rows -> Parquet, the types found while reading
huggingface.py   the card of a dataset folder, and its upload
```
"""
