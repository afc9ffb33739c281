"""Fuzzing of the readers of model files: `python -m tests.fuzz NAME`, with atheris if installed.

`corpus.zip` holds small sound models, written by `make_corpus.py`. Some hundred mutations of each
are part of the tests.
"""
