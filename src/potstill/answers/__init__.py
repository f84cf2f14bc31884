"""The answer store: every answer that was paid for, durable and found again by what was asked.

One folder per model name under `answers_dir`:

```
FORMAT.json                    the format's version and the model's name as sent
journals/<boot>-<id>.jsonl     answers, one a line with its checksum; appended to by one living process
journals/<boot>-<id>.keys      where each line stands, written once it is on the disk: a shortcut, never the truth
index/<n>-<id>.idx             the keys of many journals, sorted; written once, read only
refused/<hash>.json            a key was refused a moment ago (no part of a key stands in it)
```
"""
