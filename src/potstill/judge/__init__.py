"""The judge: a model that reads an answer and gives it a number.

```
rubric.py    a row -> what the judge is asked: the answer alone, or the answer and a reference in both orders
votes.py     what the judge said -> a checked vote, or why it is none
scores.py    votes -> one score; a score and the judge's -> the row's score
```
The asking itself is `potstill.stages.generate`: one engine, one answer store.
"""
