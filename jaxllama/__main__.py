"""The program: `python -m jaxllama` is the same as `jaxllama`."""

from jaxllama.cli.main import main

if __name__ == "__main__":
    main(prog_name="jaxllama")
