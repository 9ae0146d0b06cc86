"""The ``weights`` commands: what they list, fetch, convert and refuse."""

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from lovasz_repro.cli import weights as commands
from lovasz_repro.cli.weights import weights_app
from lovasz_repro.config.schema import experiment_names, experiments_folder
from lovasz_repro.data.locate import DEEPLAB_COCO, weights_file
from lovasz_repro.errors import UserError
from lovasz_repro.host import output as module
from lovasz_repro.host.download import UnavailableError, check_address
from lovasz_repro.models.catalogue import RELEASED
from tests.conftest import real_data
from tests.file_server import Exchange, FileServer, file, raw, serving

REAL_DATA = os.environ.get("LOVASZ_REPRO_DATA", "")
CONTENT = b"weights" * 50_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ZIP = "data/weights/prototxt_and_model.zip"
CONVERT = "lovasz-repro weights convert data/weights"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, without the environment's data folder and proxies."""
    monkeypatch.delenv("LOVASZ_REPRO_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server() -> Iterator[FileServer]:
    """Serves CONTENT."""
    with serving(file(CONTENT)) as started:
        yield started


def run(command: str) -> Result:
    return CliRunner().invoke(weights_app, shlex.split(command), catch_exceptions=True)


def output(command: str) -> str:
    result = run(command)
    assert result.exit_code == 0, result.exception
    return result.stdout


def refused(command: str, kind: type[Exception] = UserError) -> str:
    """The error of a command that ends badly."""
    result = run(command)
    assert isinstance(result.exception, kind), result.output
    return str(result.exception)


def put(name: str, content: bytes = CONTENT) -> Path:
    path = Path("data/weights", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# -- list ----------------------------------------------------------------------------------------


def listed(options: str = "") -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(output(f"list --json {options}"))}


def test_list_without_anything() -> None:
    rows = listed()
    assert list(rows) == list(RELEASED)
    for name, row in rows.items():
        assert row["state"] == "missing"
        assert row["path"] is None
        assert row["next"] == f"lovasz-repro weights fetch {name}"


def test_list_says_what_is_there_and_what_comes_next() -> None:
    put("model-cityscapes.net")
    put("prototxt_and_model.zip")
    put("resnet101-imagenet.safetensors")
    rows = listed()
    states = {name: row["state"] for name, row in rows.items()}
    assert states == {
        "enet-cityscapes": "there",
        "deeplab-coco": "fetched",
        "resnet101-imagenet": "there",
    }
    assert rows["enet-cityscapes"]["path"] == "data/weights/model-cityscapes.net"
    assert rows["enet-cityscapes"]["next"] == "lovasz-repro run cityscapes-enet"
    assert rows["deeplab-coco"]["next"] == (
        f"unzip -n -j {ZIP} init.caffemodel -d data/weights && "
        f"{CONVERT}/init.caffemodel data/weights/{DEEPLAB_COCO}"
    )
    assert rows["resnet101-imagenet"]["next"] == ""
    put(DEEPLAB_COCO)
    assert listed()["deeplab-coco"]["next"] == "lovasz-repro run voc-binary"


def test_commands_name_another_data_folder(tmp_path: Path) -> None:
    (tmp_path / "my data" / "weights").mkdir(parents=True)
    (tmp_path / "my data" / "weights" / "enet-model.net").write_bytes(CONTENT)
    rows = listed("--data 'my data'")
    assert rows["enet-cityscapes"]["next"] == "lovasz-repro run cityscapes-enet --data 'my data'"
    assert rows["deeplab-coco"]["next"].endswith("fetch deeplab-coco --data 'my data'")


def test_the_table_fits_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Terminal", partial(module.Terminal, width=80))
    text = output("list")
    head, _, rest = text.partition("\n\n")
    assert max(map(len, head.splitlines())) <= 80
    assert re.search(r"enet-cityscapes +cityscapes-enet.* missing +3\.2 MB", head)
    assert re.search(r"deeplab-coco +voc-binary, voc-multiclass +missing +not known", head)
    for entry in RELEASED.values():
        for part in (entry.url, entry.page, entry.licence, f"weights fetch {entry.name}"):
            assert part in rest


# -- fetch ---------------------------------------------------------------------------------------


@pytest.fixture
def enet(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """The server of a file that is taken for ENet's."""
    entry = replace(RELEASED["enet-cityscapes"], url=server.url, size=len(CONTENT), sha256=SHA256)
    monkeypatch.setitem(RELEASED, "enet-cityscapes", entry)
    return server


def test_fetch_once(enet: FileServer) -> None:
    path = Path("data/weights/enet-model.net")
    assert output("fetch enet-cityscapes") == (
        f"fetched: {path} (350,000 bytes)\nSHA-256: {SHA256} (as expected)\n"
        "Next: lovasz-repro run cityscapes-enet\n"
    )
    assert path.read_bytes() == CONTENT
    assert output("fetch enet-cityscapes") == (
        f"there already: {path} (SHA-256 as expected)\nNext: lovasz-repro run cityscapes-enet\n"
    )
    assert len(enet.ranges) == 1
    path.write_bytes(b"damaged")
    assert "SHA-256 is " in (message := refused("fetch enet-cityscapes"))
    assert f"expected {SHA256}. Move it away" in message
    assert path.read_bytes() == b"damaged"


def test_fetch_refuses_another_file(enet: FileServer) -> None:
    enet.answers = (file(CONTENT[::-1]),)
    message = refused("fetch enet-cityscapes", UnavailableError)
    assert f"expected {SHA256}" in message
    assert "page is https://github.com/e-lab/ENet-training" in message
    assert not Path("data/weights/enet-model.net").exists()


def test_a_mirror_must_have_the_same_file(server: FileServer) -> None:
    message = refused(f"fetch enet-cityscapes --url {server.url}", UnavailableError)
    assert "has 350,000 bytes, expected 3,230,016" in message
    text = output(f"fetch enet-cityscapes --url {server.url} --sha256 {SHA256[:10].upper()}")
    assert "(as expected)" in text
    assert Path("data/weights/enet-model.net").read_bytes() == CONTENT


def test_a_mirror_of_another_kind_keeps_its_name(server: FileServer) -> None:
    address = server.url.replace("weights.bin", "some/coco_init.pth?download=1")
    text = output(f"fetch deeplab-coco --url {address}")
    assert f"SHA-256: {SHA256} (nobody published one to compare with)" in text
    assert text.endswith(f"Next: {CONVERT}/coco_init.pth data/weights/deeplab-coco.safetensors\n")
    assert Path("data/weights/coco_init.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("path", ["", ".zip", "..%2Fx.zip", "x.html", "x.sh", "/"])
def test_a_mirror_chooses_no_odd_name(server: FileServer, path: str) -> None:
    output(f"fetch deeplab-coco --url {server.url.replace('weights.bin', path)}")
    assert [found.name for found in Path("data/weights").iterdir()] == ["prototxt_and_model.zip"]


def test_what_is_converted_is_not_fetched_again() -> None:
    put(DEEPLAB_COCO)
    assert output("fetch deeplab-coco --sha256 12345678") == (
        f"there already: data/weights/{DEEPLAB_COCO}\nNext: lovasz-repro run voc-binary\n"
    )


def test_fetch_says_where_else_to_look() -> None:
    with serving(raw(404, Content_Length=0)) as server:
        message = refused(f"fetch deeplab-coco --url {server.url}", UnavailableError)
    assert "HTTP 404" in message
    assert RELEASED["deeplab-coco"].page in message
    assert "--url" in message
    assert "`lovasz-repro weights list` names files of the same weights" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("fetch deeplab-cocoa", ["no weights 'deeplab-cocoa'", "did you mean deeplab-coco?"]),
        ("fetch x", ["There are: enet-cityscapes"]),
        ("fetch deeplab-coco --sha256 123", ["--sha256 123", "8 to 64"]),
        ("fetch deeplab-coco --url file:///etc/passwd", ["no address"]),
    ],
)
def test_mistakes(command: str, words: list[str]) -> None:
    message = refused(command)
    for word in words:
        assert word in message
    assert not Path("data").exists()


def test_killed_half_way_it_goes_on() -> None:
    half = len(CONTENT) // 2

    def stall(exchange: Exchange) -> None:
        exchange.head(200, {"Content-Length": len(CONTENT), "ETag": '"one"'})
        exchange.body(CONTENT[:half])
        exchange.server.closing.wait(60)

    part = Path("data/weights/prototxt_and_model.zip.part")
    with serving(stall, file(CONTENT)) as server:
        command = ["weights", "fetch", "deeplab-coco", "--url", server.url]
        first = subprocess.Popen([sys.executable, "-m", "lovasz_repro.cli", *command])
        while not (part.exists() and part.stat().st_size == half):
            assert first.poll() is None
            time.sleep(0.02)
        assert "by another process" in refused(" ".join(command[1:]))
        first.send_signal(signal.SIGKILL)
        first.wait()
        output(" ".join(command[1:]))
    assert server.ranges == [None, f"bytes={half}-"]
    assert Path(ZIP).read_bytes() == CONTENT


# -- convert -------------------------------------------------------------------------------------


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Path, str | None]]:
    """Calls of a conversion that only says what one would say."""
    calls: list[tuple[Path, Path, str | None]] = []

    def convert(source: Path, target: Path, *, images: str | None = None) -> SimpleNamespace:
        calls.append((source, target, images))
        kept = source.suffix == ".pth"
        return SimpleNamespace(
            layout="Caffe", classifier="kept" if kept else "none",
            outputs=21 if kept else None, tensors=520, sha256=SHA256, notes=("one", "two"),
        )  # fmt: skip

    module = SimpleNamespace(convert=convert)
    monkeypatch.setitem(sys.modules, "lovasz_repro.models.convert", module)
    return calls


def test_convert_says_what_it_read_and_wrote(conversions: list[Any]) -> None:
    assert output(f"convert init.caffemodel data/weights/{DEEPLAB_COCO}") == (
        f"read: init.caffemodel (Caffe)\nSHA-256: {SHA256}\nclassifier: none\n"
        f"note: one\nnote: two\nwrote: data/weights/{DEEPLAB_COCO} (520 tensors, no classifier)\n"
        "Next: lovasz-repro run voc-binary\n"
    )
    assert conversions == [(Path("init.caffemodel"), Path("data/weights", DEEPLAB_COCO), None)]


def test_convert_elsewhere_says_how_a_run_finds_it(conversions: list[Any]) -> None:
    text = output("convert a.caffemodel 'b c.safetensors' --images rgb")
    assert text.endswith("Next: lovasz-repro run voc-binary --weights 'b c.safetensors'\n")
    assert [call[2] for call in conversions] == ["rgb"]


# -- what is known -------------------------------------------------------------------------------


def test_the_catalogue_knows_the_released_enet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOVASZ_REPRO_DATA", REAL_DATA)
    enet, enet_weights = RELEASED["enet-cityscapes"], real_data("weights", "enet-model.net")
    assert enet.size == enet_weights.stat().st_size
    assert enet.sha256 == hashlib.sha256(enet_weights.read_bytes()).hexdigest()


@pytest.mark.parametrize("entry", RELEASED.values(), ids=RELEASED)
def test_entries_name_what_exists(entry: Any) -> None:
    check_address(entry.url)
    check_address(entry.page)
    planned = yaml.safe_load((experiments_folder() / "claims.yaml").read_text())["experiments"]
    assert set(entry.experiments) <= {*experiment_names(), *planned}
    assert entry.experiments or entry.purpose
    assert re.fullmatch("[0-9a-f]{8,64}", entry.sha256 or "0" * 64)
    assert commands.file_name(entry, entry.url) in (entry.file, *entry.used)


def test_where_runs_look_for_deeplab(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not found at data/weights/deeplab-coco\.s.*weights list"):
        weights_file(Path("data"), "deeplab-coco")
    with pytest.raises(UserError, match="not found at mine"):
        weights_file(Path("data"), "deeplab-coco", Path("mine"))
    path = put(DEEPLAB_COCO)
    assert weights_file(Path("data"), "deeplab-coco") == path
    assert weights_file(Path("nowhere"), "deeplab-coco", path) == path
    assert RELEASED["deeplab-coco"].used == (DEEPLAB_COCO,)


def test_doctor_sends_to_the_list() -> None:
    from lovasz_repro.cli.doctor import weights

    missing = weights(Path("data"), "deeplab weights")
    assert not missing.ok
    assert "lovasz-repro weights list" in missing.detail
    path = put(DEEPLAB_COCO)
    assert weights(Path("data"), "deeplab weights").detail == f"{path}, {len(CONTENT):,} bytes"
