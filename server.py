"""The server: `python server.py` is the same as `jaxllama serve`."""

import sys

from jaxllama.cli.main import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
