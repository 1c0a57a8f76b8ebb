"""Seconds of the phases of an iteration."""

from __future__ import annotations

import time

import pytest
import torch

from sppo_lit.training.timing import CRITIC, PhaseTimer


def test_the_time_of_a_nested_phase_is_not_counted_twice() -> None:
    timer = PhaseTimer(torch.device("cpu"))
    start = time.perf_counter()
    for _ in range(2):
        with timer("update"):
            time.sleep(0.02)
            with timer(CRITIC):
                time.sleep(0.03)
                with timer("wait"):
                    time.sleep(0.04)
            time.sleep(0.01)
    whole = time.perf_counter() - start
    spent = timer.end_iteration()
    assert spent["time/iteration"] == pytest.approx(whole, abs=0.005)
    assert spent["time/update"] == pytest.approx(whole - spent["time/critic"] - spent["time/wait"], abs=0.005)
    assert spent["time/critic"] >= 0.06 and spent["time/wait"] >= 0.08
    assert spent["time/update"] >= 0.06 and not timer.seconds
