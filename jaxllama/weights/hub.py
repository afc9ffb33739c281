"""HubModel: downloads weights, configuration and tokenizer of a Hugging Face model, never code.

Made by `store.py` from a name `hf:owner/name`. Needs the optional package huggingface_hub; the
error names it if it is missing.
"""

import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jaxllama.errors import CheckpointError, DownloadFailed
from jaxllama.startup import DOWNLOADING, Progress
from jaxllama.weights import open_checkpoint
from jaxllama.weights.download import PLAIN, shortened, size_text
from jaxllama.weights.gguf_split import PART, first_parts
from jaxllama.weights.sentence_transformers import SentenceFolder

logger = logging.getLogger(__name__)

SHOWN = 8
NAME = re.compile(f"hf:(?P<repo>{PLAIN}/{PLAIN})(/(?P<file>({PLAIN}/)?{PLAIN}[.]gguf))?", re.ASCII)
KEPT = re.compile(r"[\w.-]+[.](safetensors|json)|tokenizer[.]model", re.ASCII)
TORCH = re.compile(r"pytorch_model[\w.-]*[.]bin", re.ASCII)
# Of an encoder: its modules have folders that begin with their number.
ENCODER_KEPT = re.compile(r"(\d_\w+/)?([\w.-]+[.](safetensors|json)|vocab[.]txt)", re.ASCII)


@dataclass(frozen=True)
class HubModel:
    """A repository of the Hugging Face hub, or one GGUF file in it, with its parts if it is split.

    Files of a repository may lie in folders, one for each kind of quantisation.
    """

    repo: str
    gguf: str | None = None

    @property
    def file(self) -> str:
        """Return the name of the model's folder in the local store of downloaded models."""
        return "--".join([*self.repo.split("/"), *(self.gguf.split("/") if self.gguf else [])])

    @property
    def origin(self) -> str:
        """Return the model's name on the hub, such as `hf:owner/name`."""
        return "/".join([f"hf:{self.repo}", *([self.gguf] if self.gguf else [])])

    def is_there(self, target: Path) -> bool:
        """Say whether the store has the complete model at `target`."""
        return target.is_dir()

    def check(self, target: Path) -> None:
        """Check every header of the model at `target`; raise CheckpointError if one is damaged."""
        open_checkpoint(self.model(target)).close()

    def fetch(self, target: Path, progress: Progress | None) -> None:
        """Download weights, configuration and tokenizer, but no code, to the folder `target`.

        The folder `target` appears only when it is complete and checked. `progress`, if not None,
        is called once, before the download, with the model's name and the number of files. Raise
        DownloadFailed if a download or the check fails.
        """
        part = target.with_name(f"{target.name}.part")
        with hub_errors(self.repo):
            import huggingface_hub  # noqa: PLC0415 - an optional extra

            found = huggingface_hub.HfApi().model_info(self.repo, files_metadata=True)
            sizes = {each.rfilename: each.size for each in found.siblings or ()}
            wanted = self.choose(list(sizes))
            self.announce(wanted, sizes, progress)
            huggingface_hub.snapshot_download(self.repo, local_dir=part, allow_patterns=wanted)
        shutil.rmtree(part / ".cache", ignore_errors=True)
        try:
            self.check(part)
        except CheckpointError as error:
            shutil.rmtree(part)
            raise DownloadFailed(f"hf:{self.repo} holds no model we can use: {error}") from error
        part.rename(target)

    def announce(
        self, wanted: Sequence[str], sizes: Mapping[str, int | None], progress: Progress | None
    ) -> None:
        """Log the number of files to download and, if known, their total size.

        `wanted` are the names of the files; `sizes` has the bytes of each, None if unknown.
        `progress`, if not None, is called once with the same text.
        """
        known = [size for name in wanted if (size := sizes[name]) is not None]
        total = f"{size_text(sum(known))} in " if len(known) == len(wanted) else ""
        words = f"{DOWNLOADING}hf:{self.repo}, {total}{len(wanted)} files"
        logger.info(words)
        if progress is not None:
            progress(words, 0, 0)

    def model(self, target: Path) -> Path:
        """Return the path to open: the only GGUF model in the folder `target`, or else `target`."""
        files = first_parts(target)
        return files[0] if len(files) == 1 else target

    def choose(self, files: Sequence[str]) -> list[str]:
        """Return those of the repository's `files` that have to be downloaded.

        Raise DownloadFailed if the GGUF file that the model's name states is missing. If the name
        states none, raise it if there are no weights or several GGUF models.
        """
        if self.gguf is not None:
            if self.gguf not in files:
                raise DownloadFailed(f"hf:{self.repo} has no file {self.gguf}; {listed(files)}")
            return parts_of(self.gguf, files)
        kept = [name for name in files if KEPT.fullmatch(name)]
        weights = [name for name in kept if name.endswith(".safetensors")]
        if weights:
            # Some repositories hold everything twice, as model-*.safetensors and consolidated.*
            named = [name for name in weights if name.startswith("model")]
            return [name for name in kept if name not in weights] + (named or weights)
        whole = [name for name in files if name.endswith(".gguf") and "/" not in name]
        torch = [name for name in files if TORCH.fullmatch(name)]
        if torch and not whole:
            return kept + torch
        if len(parts_of(whole[0], whole) if whole else []) != max(len(whole), 1):
            hint = f"; choose one: hf:{self.repo}/{whole[0]}" if whole else ""
            raise DownloadFailed(
                f"hf:{self.repo} has no safetensors and {len(whole)} GGUF files{hint}; "
                f"{listed(whole or files)}"
            )
        return whole


def parts_of(file: str, files: Sequence[str]) -> list[str]:
    """Return the names in `files` of all parts of the split GGUF model that `file` is a part of.

    Return `file` alone if its name is not that of a part.
    """
    match = PART.fullmatch(file)
    if match is None:
        return [file]
    others = ((name, PART.fullmatch(name)) for name in files)
    wanted = match.group("stem", "count")
    return [name for name, other in others if other and other.group("stem", "count") == wanted]


@dataclass(frozen=True)
class HubEncoder(HubModel):
    """A repository with an encoder, in the form of sentence-transformers."""

    def check(self, target: Path) -> None:
        """Check every header in the folder `target`; raise CheckpointError if one is damaged."""
        SentenceFolder.open(target).close()

    def model(self, target: Path) -> Path:
        """Return the path of the encoder's folder in the store, which is `target` itself."""
        return target

    def choose(self, files: Sequence[str]) -> list[str]:
        """Return those of the repository's `files` that have to be downloaded.

        Raise DownloadFailed if none is a safetensors file.
        """
        kept = [name for name in files if ENCODER_KEPT.fullmatch(name)]
        if not any(name.endswith(".safetensors") for name in kept):
            raise DownloadFailed(f"hf:{self.repo} has no safetensors; {listed(files)}")
        return kept


def hub_model(model: str) -> HubModel:
    """Return a HubModel for the name hf:owner/name or hf:owner/name/file.gguf; download nothing.

    Raise DownloadFailed for any other name.
    """
    found = NAME.fullmatch(model)
    if found is None or ".." in model:
        raise DownloadFailed(
            f"{shortened(model)} is no model of the hub; expected hf:owner/name or "
            f"hf:owner/name/file.gguf"
        )
    return HubModel(found["repo"], found["file"])


def hub_encoder(model: str) -> HubEncoder:
    """Return a HubEncoder for the name hf:owner/name; download nothing.

    Raise DownloadFailed for any other name.
    """
    return HubEncoder(hub_model(model).repo)


@contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Convert every error in the `with` block to DownloadFailed, also a missing huggingface_hub.

    The error's text names the repository `repo`, which is "owner/name".
    """
    try:
        yield
    except DownloadFailed:
        raise
    except ImportError as error:
        raise DownloadFailed(
            f"hf:{repo} needs the huggingface_hub package; install it with "
            f"pip install 'jaxllama[hub]'"
        ) from error
    except Exception as error:  # its exception classes differ between versions
        words = str(error).strip().splitlines()
        raise DownloadFailed(
            f"hf:{repo} could not be fetched: {type(error).__name__}: {words[0] if words else ''}"
        ) from error


def listed(files: Sequence[str]) -> str:
    """Return a phrase for error messages that lists the first `files`: "it has a, b and 3 more"."""
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return f"it has {', '.join(files[:SHOWN]) or 'none'}{more}"
