"""Hub ids without a network: refused at once, without retries, unless the files are in the cache."""

import socket

import pytest

from data.load_tokenizer import load_tokenizer
from models.pretrained import from_files, is_hub_id
from storage import hub


@pytest.fixture(autouse=True)
def no_memory(monkeypatch, tmp_path):
    hub._answers.cache_clear()
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "https_proxy", "http_proxy", "HTTPS_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield
    hub._answers.cache_clear()


@pytest.fixture
def port():
    """Of a server that accepts connections on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_whether_something_answers(monkeypatch, port):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    assert hub.hub_is_reachable()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    assert not hub.hub_is_reachable()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not hub.hub_is_reachable()


def test_a_proxy_is_asked_in_the_hubs_place(monkeypatch, port):
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    assert hub.hub_is_reachable()


class Recorded:
    """A class of transformers that notes how it was called."""

    def __init__(self):
        self.options = None

    def from_pretrained(self, place, **options):
        self.options = options
        raise OSError("nothing")


def test_a_model_that_is_not_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    kind = Recorded()
    with pytest.raises(ValueError, match="key: lab/model cannot .*: lab/model is not in the cache and the hub cannot"):
        from_files(kind, "lab/model", "key: lab/model", cache_dir=str(tmp_path))
    assert kind.options["local_files_only"] is True
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="nothing"):
        from_files(kind, str(tmp_path / "folder"), "key")


def test_a_tokenizer_that_is_not_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(ValueError, match="lab/tokens .* is not in the cache and the hub cannot be reached"):
        load_tokenizer("lab/tokens", hub_cache=str(tmp_path))


def test_what_a_hub_id_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab/model").mkdir(parents=True)
    assert is_hub_id("gpt2") and is_hub_id("lab/other")
    for path in ("lab/model", "/lab/other", "./other", "a/b/c", tmp_path):
        assert not is_hub_id(path), path
