"""`predict.py --serve` as a user starts it, and the client of docs/predict.md."""

import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from documents import blocks
from predictions import actions, observations, refused, train_on_images

import predict
import serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def act(tmp_path_factory):
    """A tiny ACT on two frames of a camera."""
    folder = tmp_path_factory.mktemp("act")
    train_on_images(folder)
    return folder


class Served:
    """A server in a process of its own."""

    def __init__(self, *words):
        command = [sys.executable, "predict.py", *map(str, words)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.address = self.process.stdout.readline().split()[-1]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.communicate()

    def end(self, number):
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err


def client():
    """The names that the document's Python block defines."""
    (text,) = [text for language, text in blocks(ROOT / "docs/predict.md") if language == "python"]
    names = {"__name__": "client"}
    exec(compile(text, "docs/predict.md", "exec"), names)
    return SimpleNamespace(**names)


def test_the_client_of_the_document(act, tmp_path):
    """Two robots take turns: each gets what predict.py writes for its recording, and after a reset again."""
    output = tmp_path / "out.h5"
    words = ["--checkpoint", str(act / "out"), "--input", str(act / "episodes"), "--output", str(output)]
    predict.main([*words, "--device", "cpu"])
    expected = list(actions(output).values())
    assert np.abs(expected[0] - expected[1]).max() > 0.01
    code = client()
    with Served("--checkpoint", act / "out", "--serve", 0, "--device", "cpu") as server:
        assert server.address.startswith("ws://127.0.0.1:")
        with code.connect(server.address) as one, code.connect(server.address) as two:
            robots = [one, two]
            metadata = [code.receive(robot) for robot in robots][0]
            assert metadata["state"] == {"keys": ["observations/qpos"], "size": 14, "history": 1}
            assert metadata["images"] == {"keys": ["observations/images/top"], "size": [40, 40], "history": 2}
            assert metadata["actions"] == {"shape": [3, 14], "dtype": "<f8"} and metadata["n_action_steps"] == 2
            for _ in range(2):
                for *rows, step in zip(observations(act, 0), observations(act, 1), range(8), strict=True):
                    for index, robot in enumerate(robots):
                        chunk = code.ask(robot, rows[index])["actions"]
                        np.testing.assert_allclose(chunk, expected[index][step], rtol=1e-5, atol=1e-5)
                assert [code.ask(robot, {"reset": True}) for robot in robots] == [{"reset": True}] * 2
            good = observations(act, 0)[0]
            for observation, reason in [
                ({"observations/qpos": np.zeros(14)}, "no `observations/images/top`"),
                (good | {"observations/qpos": np.zeros(9)}, "9 dimensions"),
                (good | {"observations/qpos": np.full(14, np.nan)}, "not finite"),
                (good | {"observations/images/top": np.zeros((40, 56, 3))}, "uint8"),
            ]:
                with pytest.raises(RuntimeError, match=reason):
                    code.ask(one, observation)
            code.ask(one, {"reset": True})
            np.testing.assert_allclose(code.ask(one, good)["actions"], expected[0][0], rtol=1e-5, atol=1e-5)
            assert server.end(signal.SIGTERM) == (0, "", "")


def test_the_token_and_the_end(act, tmp_path, capsys):
    from websockets.exceptions import InvalidStatus

    (tmp_path / "token").write_text("s3cret\n")
    words = ["--host", "0.0.0.0", "--token", f"@{tmp_path / 'token'}", "--device", "cpu"]
    with Served("--checkpoint", act / "out", "--serve", 0, *words) as server:
        assert server.address.startswith("ws://0.0.0.0:")
        address = server.address.replace("0.0.0.0", "127.0.0.1")
        code = client()
        with code.connect(address, additional_headers={"Authorization": "Bearer s3cret"}) as connection:
            assert code.receive(connection)["actions"]["shape"] == [3, 14]
        with pytest.raises(InvalidStatus), code.connect(address):
            pass
        assert "in use" in refused(capsys, "--checkpoint", act / "out", "--serve", server.address.split(":")[-1])
        assert server.end(signal.SIGINT) == (0, "", "")


def test_without_the_packages(act, monkeypatch, capsys):
    """One line that names what to install."""
    monkeypatch.delitem(sys.modules, "serving.server", raising=False)
    monkeypatch.delattr(serving, "server", raising=False)
    monkeypatch.setitem(sys.modules, "websockets.asyncio.server", None)
    assert "pip install websockets msgpack" in refused(capsys, "--checkpoint", act / "out", "--serve", 0)
