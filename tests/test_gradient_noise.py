"""The benchmark of gradient noise: its numbers against their definitions."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gradient_noise import interval, snr


def test_signal_and_noise_are_unbiased():
    """Over many sets of updates with a known mean and a known covariance, whose trace is 9 + 4 + 1."""
    generator = torch.Generator().manual_seed(0)
    mean, spread = torch.tensor([1.0, 2.0, 0.0]).double(), torch.tensor([3.0, 2.0, 1.0]).double()
    found = []
    for _ in range(4000):
        g = mean + spread * torch.randn(6, 3, generator=generator, dtype=torch.float64)
        found.append(snr(g @ g.T)[:2])
    signal, noise = (torch.tensor(x, dtype=torch.float64) for x in zip(*found, strict=True))
    for values, truth in ((signal, 5.0), (noise, 14.0)):
        assert abs(float(values.mean()) - truth) < 4 * float(values.std()) / len(values) ** 0.5


def test_some_of_the_updates_are_those_that_were_drawn_and_the_interval_holds_their_ratio():
    g = torch.randn(8, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 1.0
    gram = g @ g.T
    part = g[[1, 4, 6]]
    assert snr(gram, [1, 4, 6]) == pytest.approx(snr(part @ part.T))
    noise = float((part - part.mean(0)).square().sum() / 2)
    assert snr(gram, [1, 4, 6])[1] == pytest.approx(noise)
    told = interval(gram, 2000.0)
    assert told["low"] < told["snr_per_1k_tokens"] < told["high"]
    assert told["snr_per_1k_tokens"] == pytest.approx(snr(gram)[2] / 2)
