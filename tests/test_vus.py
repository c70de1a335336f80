"""VUS-PR against loops over every buffer, threshold, stretch and step, and against what must hold of any measure."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from vus import vus_pr


def slow(labels, scores, buffer, thresholds):
    """The definition of TSB-AD, threshold by threshold and step by step."""
    n = len(labels)
    stretches, begin = [], None
    for step, label in enumerate([*labels, False]):
        if label and begin is None:
            begin = step
        elif not label and begin is not None:
            stretches.append((begin, step - 1))
            begin = None
    descending = sorted(scores, reverse=True)
    levels = [descending[int(place)] for place in np.linspace(0, n - 1, thresholds)]
    areas = []
    for width in range(buffer + 1):
        weights = [float(label) for label in labels]
        for first, last in stretches:
            for step in range(n):
                distance = max(first - step, step - last)
                if 0 < distance <= width // 2:
                    weights[step] += (1 - distance / width) ** 0.5
        weights = [min(weight, 1.0) for weight in weights]
        longer = [[first - width // 2, last + width // 2] for first, last in stretches]
        merged = longer[:1]
        for first, last in longer[1:]:
            if merged[-1][1] < first:
                merged.append([first, last])
            else:
                merged[-1][1] = last
        before, area = 0.0, 0.0
        for level in levels:
            told = [score >= level for score in scores]
            reward = sum(weight for weight, is_told in zip(weights, told, strict=True) if is_told)
            found = sum(any(told[max(0, first) : last + 1]) for first, last in merged) / len(merged)
            # of the buffers only what is told counts among the positives, and half of it
            extra = sum(w for w, t, label in zip(weights, told, labels, strict=True) if t and not label)
            positives = (sum(labels) + sum(labels) + extra) / 2
            recall = min(reward / positives, 1) * found
            area += (recall - before) * reward / sum(told)
            before = recall
        areas.append(area)
    return sum(areas) / len(areas)


@given(st.integers(3, 40), st.integers(0, 12), st.integers(2, 30), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=150)
def test_as_the_definition_says(n, buffer, thresholds, seed):
    draws = np.random.default_rng(seed)
    labels = draws.random(n) < draws.choice([0.1, 0.5, 0.9])
    labels[draws.integers(n)] = True
    scores = draws.integers(0, draws.choice([2, 5, 1000]), n).astype(float)  # ties among them
    assert vus_pr(labels, scores, buffer, thresholds) == pytest.approx(slow(labels, scores, buffer, thresholds))


def series():
    labels = np.zeros(2000, bool)
    labels[500:560], labels[1200:1300] = True, True
    return labels


def test_what_is_told_exactly_is_nearly_one_and_noise_is_the_share_of_anomalies():
    labels = series()
    assert vus_pr(labels, labels + 0.0, 0, thresholds=2000) == pytest.approx(1)
    noise = [vus_pr(labels, np.random.default_rng(seed).random(2000), 0) for seed in range(20)]
    assert np.mean(noise) == pytest.approx(labels.mean(), abs=0.03)


def test_a_shift_costs_less_the_wider_the_buffer_and_a_missed_stretch_its_share():
    labels = series()
    late = np.roll(labels, 20) + 0.0
    assert vus_pr(labels, late, 0) < vus_pr(labels, late, 50) < vus_pr(labels, late, 100) < 1
    one = labels.copy()
    one[1000:] = False
    assert vus_pr(labels, one + 0.0, 50) < 0.5 * vus_pr(labels, labels + 0.0, 50)
    rising = np.random.default_rng(0).normal(size=2000)
    assert vus_pr(labels, rising, 50) == vus_pr(labels, np.exp(rising) * 7, 50)  # only ranks count
