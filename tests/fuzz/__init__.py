"""Fuzzing of all readers of bytes that a stranger can send: `make fuzz`, or `python -m tests.fuzz`.

`corpus.zip` holds small sound models, written by `make_corpus.py`; `seeds/` holds sound texts and
requests. Some mutations of each are part of the tests.
"""
