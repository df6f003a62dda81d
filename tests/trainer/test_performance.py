"""Speed and memory figures against a clock set by hand."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_training import Regression, Samples, make_trainer

from trainer.callbacks.throughput import (
    PEAK_TFLOPS,
    ThroughputMonitor,
    TimedSteps,
    flops_per_sample,
    peak_flops,
    peak_memory,
)
from trainer.optimization.nonfinite_guard import NonfiniteGuard

CPU = torch.device("cpu")


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_figures_of_an_interval():
    clock = Clock()
    meter = ThroughputMonitor(CPU, clock=clock)
    assert meter.take(2, 8) == {}  # nothing has begun
    clock.now = 110.0
    meter.began, meter.waited_s = clock.now, 0.6
    clock.now = 114.0
    first = meter.take(2, 32)
    assert first["samples_per_second"] == 8.0 and first["step_ms"] == 2000.0 and first["data_wait_ms"] == 300.0
    assert "mfu" not in first
    clock.now = 116.0
    second = meter.take(1, 16)  # goes on from the first log line
    assert second["samples_per_second"] == 8.0 and second["data_wait_ms"] == 0.0
    assert meter.take(0, 0) == {}


def test_evaluation_and_saving_do_not_count():
    clock = Clock()
    meter = ThroughputMonitor(CPU, clock=clock)
    meter.began = clock.now
    clock.now += 2.0
    meter.pause()
    clock.now += 50.0
    meter.pause()  # a checkpoint within an evaluation
    clock.now += 50.0
    meter.resume()
    clock.now += 50.0
    meter.resume()
    clock.now += 2.0
    assert meter.take(4, 4)["step_ms"] == 1000.0
    with pytest.raises(AssertionError):
        meter.resume()
    meter.pause()
    clock.now += 7.0
    meter.resume()
    clock.now += 1.0
    assert meter.take(1, 1)["step_ms"] == 1000.0


def test_a_log_within_a_pause():
    """The pause reaches into the next interval."""
    clock = Clock()
    meter = ThroughputMonitor(CPU, clock=clock)
    meter.began = clock.now
    clock.now += 1.0
    meter.pause()
    assert meter.take(1, 1)["step_ms"] == 1000.0
    clock.now += 5.0
    meter.resume()
    clock.now += 1.0
    assert meter.take(1, 1)["step_ms"] == 1000.0


def test_model_flops_utilization(monkeypatch):
    """1e12 operations a sample, 100 samples in a second on two GPUs of 989 TFLOP/s."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
    clock = Clock()
    meter = ThroughputMonitor(torch.device("cuda"), flops_per_sample=1e12, processes=2, clock=clock)
    meter.began = clock.now
    clock.now += 1.0
    taken = meter.take(1, 100)
    assert taken["mfu"] == pytest.approx(100e12 / (2 * 989e12), abs=1e-4) and taken["peak_memory_mb"] == 3.0
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some Other Thing")
    unknown = ThroughputMonitor(torch.device("cuda"), flops_per_sample=1e12, clock=clock)
    unknown.began = clock.now
    clock.now += 1.0
    assert "mfu" not in unknown.take(1, 100)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A40", 149.7),
        ("Tesla T4", 65.0),
        ("Tesla V100-SXM2-16GB", 125.0),
        ("", None),
    ],
)
def test_peaks_by_name(name, tflops):
    assert peak_flops(name) == (None if tflops is None else tflops * 1e12)


def test_every_peak_can_be_reached():
    """No entry is hidden by a shorter name before it."""
    for name, tflops in PEAK_TFLOPS:
        assert peak_flops(f"NVIDIA {name}") == tflops * 1e12, name


def test_flops_the_model_gives():
    assert flops_per_sample(Regression()) is None
    assert flops_per_sample(SimpleNamespace(flops_per_sample=3)) == 3.0
    assert flops_per_sample(SimpleNamespace(flops_per_sample=lambda: 4e9)) == 4e9


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_of_a_process():
    status = Path("/proc/self/status").read_text()
    assert peak_memory(CPU) == pytest.approx(1024 * int(status.split("VmHWM:")[1].split()[0]), rel=0.01)


@pytest.mark.slow
def test_steps_timed_one_by_one(tmp_path, monkeypatch):
    waits, logged = [], []
    monkeypatch.setattr("trainer.callbacks.throughput._wait_for", lambda device: waits.append(device))
    trainer = make_trainer(tmp_path, max_steps=3, gradient_accumulation_steps=2)
    trainer.add_callback(TimedSteps(lambda values: logged.append((trainer.state.global_step, values))))
    trainer.train()
    assert [step for step, _ in logged] == [1, 2, 3] and len(waits) == 6
    assert all(values.keys() == {"train_step_ms"} and values["train_step_ms"] > 0 for _, values in logged)


@pytest.mark.slow
def test_waiting_for_data_is_measured_by_the_training_loop(tmp_path):
    class Slow(Samples):
        def __getitem__(self, index):
            time.sleep(0.002)
            return super().__getitem__(index)

    trainer = make_trainer(tmp_path, data=Slow(64), count=64, max_steps=4, gradient_accumulation_steps=2)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "data_wait_ms" in entry]
    assert [entry["step"] for entry in logs] == [2, 4]
    assert all(8 * 2 <= entry["data_wait_ms"] < entry["step_ms"] for entry in logs)  # 2 × 4 samples a step


@pytest.mark.parametrize("kind", [torch.tensor, float])
def test_share_of_clipped_steps(kind):
    guard, optimizer = NonfiniteGuard(9, clip_threshold=1.0), torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
    assert guard.take() == (1.0, {})

    def steps(*norms):
        for norm in norms:
            guard.before_update(1, optimizer, kind(norm))
        return guard.take()

    assert steps(0.5, 1.0, 1.5, 2.0) == (1.0, {"grad_clip_pct": 50.0})
    assert steps(2.0) == (1.0, {"grad_clip_pct": 100.0})
    assert steps(0.5, 3.0, float("inf"), float("nan")) == (2.0, {"grad_clip_pct": 50.0, "skipped_steps": 2})
