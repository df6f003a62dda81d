"""The policy server over real connections, with a policy whose actions can be foretold."""

import asyncio
import os
import signal
import threading

import numpy as np
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from serving.codec import pack, unpack
from serving.server import PolicyServer, is_loopback


class Counting:
    """Answers with the sum of the observation and how many it has seen since the reset."""

    lock = threading.Lock()

    def __init__(self):
        self.seen = 0

    def reset(self):
        self.seen = 0

    def act(self, observation):
        assert self.lock.acquire(blocking=False), "two observations at a time"
        try:
            if "crash" in observation:
                raise RuntimeError("out of\nmemory")
            if "state" not in observation:
                raise ValueError("the observation has no `state`")
            self.seen += 1
            return {"actions": np.full((2, 3), float(observation["state"].sum()) + 100 * self.seen)}
        finally:
            self.lock.release()


def served(scenario, token=None, max_bytes=10_000, host="127.0.0.1"):
    """Run `scenario(address)` against a server in this process, which SIGTERM then ends."""

    async def both():
        ready = asyncio.get_running_loop().create_future()
        server = PolicyServer(Counting, {"task": "counting"}, token)
        running = asyncio.create_task(server.run(host, 0, max_bytes, ready.set_result))
        done, _ = await asyncio.wait([ready, running], return_when=asyncio.FIRST_COMPLETED)
        if running in done:
            await running
        try:
            return await scenario(ready.result())
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.wait_for(running, 10)

    return asyncio.run(both())


async def ask(connection, **observation):
    await connection.send(pack(observation))
    reply = await connection.recv()
    return reply if isinstance(reply, str) else unpack(reply)


def state(value):
    return {"state": np.array([value, 1.0], np.float32)}


def test_metadata_actions_and_reset_of_each_connection():
    async def scenario(address):
        async with connect(address) as one, connect(address) as two:
            assert unpack(await one.recv()) == unpack(await two.recv()) == {"task": "counting"}
            replies = [await ask(one, **state(2)), await ask(one, **state(2)), await ask(two, **state(5))]
            assert [reply["actions"].tolist() for reply in replies] == [[[n] * 3] * 2 for n in (103, 203, 106)]
            assert replies[0]["actions"].dtype == np.float64 and replies[0]["server_timing"]["infer_ms"] >= 0
            assert await ask(one, reset=True) == {"reset": True}
            assert (await ask(one, **state(0)))["actions"][0, 0] == 101
            assert (await ask(two, **state(0)))["actions"][0, 0] == 201  # the other robot's episode goes on
            assert (await ask(two, reset=True, **state(0)))["actions"][0, 0] == 101

    served(scenario)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\xc1", "not msgpack"),
        (pack([1, 2]), "must be a map"),
        (pack({}), "needs an observation"),
        (pack({"reset": False}), "needs an observation"),
        (pack({"reset": 1, **state(1)}), "needs an observation"),
        (b"\x81\x01\x02", ""),  # a number as a name
        ("text", "text message"),
        (pack({"other": 1}), "has no `state`"),
        (pack({"crash": 1}), "the policy failed (RuntimeError: out of memory)"),
    ],
)
def test_an_error_is_a_message_and_the_connection_goes_on(message, reason, capfd):
    async def scenario(address):
        async with connect(address) as connection:
            await connection.recv()
            await connection.send(message)
            reply = await connection.recv()
            assert isinstance(reply, str) and reply.startswith("error: ") and reason in reply and "\n" not in reply
            assert (await ask(connection, **state(0)))["actions"][0, 0] == 101

    served(scenario)
    assert ("RuntimeError" in capfd.readouterr().err) == ("failed" in reason)  # a crash's place is for the operator


def test_many_clients_are_answered_one_at_a_time():
    async def client(address):
        async with connect(address) as connection:
            await connection.recv()
            return [(await ask(connection, **state(n)))["actions"][0, 0] for n in range(5)]

    async def scenario(address):
        return await asyncio.gather(*(client(address) for _ in range(6)))

    assert served(scenario) == [[n + 1 + 100 * (n + 1) for n in range(5)]] * 6


def test_the_token():
    async def scenario(address):
        good = {"Authorization": "Bearer s3cret"}
        async with connect(address, additional_headers=good) as connection:
            assert unpack(await connection.recv()) == {"task": "counting"}
        twice = [("Authorization", "Bearer s3cret"), ("Authorization", "Bearer s3cret")]
        wrong = [
            {},
            {"Authorization": "Bearer s3cre"},
            {"Authorization": "s3cret"},
            {"Authorization": "Bearer ä"},
            twice,
        ]
        for headers in wrong:
            with pytest.raises(InvalidStatus) as refused:
                await connect(address, additional_headers=headers)
            assert refused.value.response.status_code == 401

    served(scenario, token="s3cret")


def test_a_page_in_a_browser_is_refused():
    async def scenario(address):
        with pytest.raises(InvalidStatus) as refused:
            await connect(address, origin="http://example.org")
        assert refused.value.response.status_code == 403

    served(scenario)


def test_a_message_that_is_too_long_ends_its_connection_alone():
    async def scenario(address):
        async with connect(address) as long, connect(address) as other:
            await long.recv()
            await other.recv()
            assert isinstance(await ask(long, state=np.zeros(1100)), dict)  # 8,800 bytes
            with pytest.raises(ConnectionClosed) as closed:
                await ask(long, state=np.zeros(1300))
            assert closed.value.rcvd.code == 1009
            assert (await ask(other, **state(0)))["actions"][0, 0] == 101

    served(scenario, max_bytes=10_000)


def test_the_end_closes_connections():
    async def scenario(address):
        connection = await connect(address)
        await connection.recv()
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(ConnectionClosed) as closed:
            await connection.recv()
        assert closed.value.rcvd.code == 1001

    served(scenario)


def test_an_address_that_is_taken_is_an_os_error():
    async def scenario(address):
        port = int(address.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            await PolicyServer(Counting, {}).run("127.0.0.1", port, 1000)

    served(scenario)


def test_loopback_addresses():
    assert all(map(is_loopback, ("127.0.0.1", "127.0.0.9", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "", "localhost.example.org")))
