"""Exports: the merged rows of a model as files that a trainer loads.

```
exporter.py      an export from end to end: two passes over the rows
reading.py       the first pass; index.py holds what it remembers of every row (some 60 bytes each)
plan.py          which rows are used and in which split; split.py has the methods, groups.py the keys
preferences.py   the rows of dpo and kto; pairs.py makes them out of the answers to one prompt
examples.py      one row -> the prompt and the answer of a training example
shapes.py        one example -> a line or a table's row; formats.py has the shape of each JSONL format
decontaminate.py rows that repeat a benchmark; references.py reads the benchmarks
normalise.py     words, n-grams, SQL with its literals or names masked
columns.py       JSON rows -> Parquet, the types found while reading
huggingface.py   the card of a dataset folder, and its upload
layout.py        which files there will be; ratios.py the shares; check.py what can be wrong with the section
```
"""
