"""An attack on a running server: `make chaos`. No part of the tests; `python -m tests.chaos -h`."""
