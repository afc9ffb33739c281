"""The command line on top of the Python API: one module per command, imported when it is used."""
