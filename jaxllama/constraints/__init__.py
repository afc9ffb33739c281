"""Constraints: schemas, regular expressions, grammars and choices that hold an answer to a form."""
