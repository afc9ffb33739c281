"""The peer ik_llama.cpp: its llama-server on the same file, measured through HTTP."""

from itertools import product
from pathlib import Path

from peer import PeerModel, WorkerProgram

START = "import ik_llamacpp_worker; ik_llamacpp_worker.main()"
REPACKING = ((), ("-rtr",))  # rows are interleaved for its kernels when the model is loaded
ATTENTION = ((), ("-fa", "off"))  # flash attention is on by default


class IkLlamaCppPeer(PeerModel):
    """One model of ik_llama.cpp; its settings are the options of the server."""

    name = "ik_llama.cpp"

    def __init__(
        self, path: Path, *, sequences: int, length: int, threads: int, server: Path
    ) -> None:
        options = [[*repack, *attention] for repack, attention in product(REPACKING, ATTENTION)]
        settings = {" ".join(each) or "no options": {"options": each} for each in options}
        sizes = {"sequences": sequences, "length": length, "threads": threads}
        command = [str(server.absolute()), "-m", str(path)]
        super().__init__(WorkerProgram(START), settings, command, **sizes)
