"""Figures of a deployment: the metrics of all replicas in one text, and those of the gateway.

Both are in Prometheus' text form. Knows no HTTP.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass
class GatewayFigures:
    """Counts of one gateway: its requests, and what became of them."""

    open: int = 0
    retried: int = 0
    lost: int = 0

    def text(self) -> str:
        """Return the gateway's counters in the text format of Prometheus."""
        rows = (
            ("open", "gauge", "Requests that the gateway answers now", self.open),
            ("retried_total", "counter", "Requests asked again of another replica", self.retried),
            ("lost_total", "counter", "Answers cut because their replica was lost", self.lost),
        )
        return "".join(
            f"# HELP jaxllama_gateway_{name} {words}\n# TYPE jaxllama_gateway_{name} {kind}\n"
            f"jaxllama_gateway_{name} {float(value)}\n"
            for name, kind, words, value in rows
        )


def merge_metrics(texts: Mapping[str, str]) -> str:
    """Merge the metrics of replicas into one text; every sample gets the label `replica`.

    `texts` maps the name of each replica to its metrics in the text format of Prometheus. All
    samples of one metric stay together.
    """
    families: dict[str, list[str]] = {}
    for replica, text in texts.items():
        family = ""
        for line in text.splitlines():
            if line.startswith("# "):  # HELP or TYPE, then the family's name
                family = line.split(" ", 3)[2]
                lines = families.setdefault(family, [])
                if line not in lines:
                    lines.append(line)
            elif line:
                families.setdefault(family, []).append(labelled(line, replica))
    return "".join(f"{line}\n" for lines in families.values() for line in lines)


def labelled(sample: str, replica: str) -> str:
    """Return a sample, one line of Prometheus text, with the label `replica` before its others."""
    brace, space = sample.find("{"), sample.find(" ")
    label = f'replica="{replica}"'
    if 0 <= brace < space:
        comma = "" if sample[brace + 1] == "}" else ","
        return f"{sample[: brace + 1]}{label}{comma}{sample[brace + 1 :]}"
    return f"{sample[:space]}{{{label}}}{sample[space:]}"
