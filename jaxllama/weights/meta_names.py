"""Names of tensors in Meta's checkpoints, which llama2.c's files use too.

Called by both readers. Knows how the tensors of several shards make one.
"""

from jaxllama.config import ModelConfig
from jaxllama.weights.layout import TRANSPOSED, Step, UnpairRope
from jaxllama.weights.rules import Concatenate, Copies, Join, Rule, expand, numbered

EMBEDDING = "tok_embeddings.weight"
HEAD = "output.weight"
GATE = "layers.0.feed_forward.w1.weight"
ROWS, COLUMNS = Concatenate(0), Concatenate(1)

# Our path, their name, and how shards divide the tensor.
NAMES: dict[str, tuple[str, Join]] = {
    "embed.weight": (EMBEDDING, COLUMNS),
    "blocks.{i}.attention_norm.weight": ("layers.{i}.attention_norm.weight", Copies()),
    "blocks.{i}.attention.q.weight": ("layers.{i}.attention.wq.weight", ROWS),
    "blocks.{i}.attention.k.weight": ("layers.{i}.attention.wk.weight", ROWS),
    "blocks.{i}.attention.v.weight": ("layers.{i}.attention.wv.weight", ROWS),
    "blocks.{i}.attention.o.weight": ("layers.{i}.attention.wo.weight", COLUMNS),
    "blocks.{i}.ffn_norm.weight": ("layers.{i}.ffn_norm.weight", Copies()),
    "blocks.{i}.ffn.gate.weight": ("layers.{i}.feed_forward.w1.weight", ROWS),
    "blocks.{i}.ffn.down.weight": ("layers.{i}.feed_forward.w2.weight", COLUMNS),
    "blocks.{i}.ffn.up.weight": ("layers.{i}.feed_forward.w3.weight", ROWS),
    "final_norm.weight": ("norm.weight", Copies()),
    "unembed.weight": (HEAD, ROWS),
}


def meta_table(config: ModelConfig, shards: int = 1, embedding: Join = COLUMNS) -> dict[str, Rule]:
    """Return, by parameter path, the rules that read a model with Meta's names from its files.

    A parameter path is a name such as `blocks.0.attention.q.weight`. `shards` is the number of
    files; `embedding` says along which axis they divide the embedding.
    """
    table = {}
    for path, (name, join) in NAMES.items():
        steps: tuple[Step, ...] = TRANSPOSED
        if path.endswith((".q.weight", ".k.weight")):
            steps = (UnpairRope(config.head_dim), *TRANSPOSED)
        elif name == EMBEDDING or "norm" in name:
            steps = ()
        if shards == 1:
            table[path] = Rule(name, steps)
        else:
            chosen = embedding if name == EMBEDDING else join
            table[path] = Rule(numbered(sharded("{n}", name), shards), steps, chosen)
    return expand(table, config.layers)


def sharded(shard: int | str, name: str) -> str:
    """Return the name for tensor `name` of shard number `shard`, such as `0/norm.weight`.

    `shard` may also be a placeholder for the number, such as `{n}`.
    """
    return f"{shard}/{name}"
