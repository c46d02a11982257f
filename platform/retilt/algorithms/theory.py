"""What section 4 of arXiv 2603.10279 proves about the tilted policy under noisy rewards, as functions.

    π_λ(a | s) = π_β(a | s) exp(r̂(s, a) / λ) / Z(s),   r̂ = r* + ξ,   |ξ(s, a)| ≤ ε for all a       (eq. 7)

Every bound is a *loss*: the most that V(π_λ), the mean of r* under π_λ, can lie below V(π_β) in a state whose noise
stays within ε. The noise is a function of (s, a): two events of one state and item get the same (for noise that is
drawn anew with each event see ``certainty_equivalent``). ``reward_range`` is R_max, the range of r*: 4 for one to five
stars.

All functions take and return float64 arrays that broadcast; policies are finite log-probabilities with the items on the
last axis.

Shape legend: V items; ``...`` states, draws or whatever else is broadcast.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Number = float | Floats

RARE = 1e-6
"""What ``one_good_item`` leaves of π_β to the bad items."""


def noise_radius(deviation: float, actions: int, failure: float) -> float:
    """ε = σ √(2 ln(2|A| / δ)) of Theorem 4.3: with probability 1 − δ no item of a state has more noise.

    Args:
        deviation: σ, so that the noise is σ-sub-Gaussian (Assumption 4.2), in the reward's unit.
        actions: |A|, the items of the catalogue; times the states for a guarantee that holds in all of them at once.
        failure: δ, in (0, 1).
    """
    return deviation * math.sqrt(2 * math.log(2 * actions / failure))


def loss_any_temperature(radius: Number) -> Number:
    """2ε, for every λ: Theorem 4.3, eq. 12. Attained by ``worst_two_items`` as λ → 0."""
    return 2 * radius


def variation_exponential(radius: Number, temperature: Number) -> Floats:
    """Eq. 38: the total variation of π_λ from the tilt of r* is at most (e^{2ε/λ} − 1) / 2."""
    with np.errstate(over="ignore"):  # above e^709 the bound is as good as infinite
        return np.asarray(np.expm1(2 * np.divide(radius, temperature)) / 2)


def variation_tanh(radius: Number, temperature: Number) -> Floats:
    """The sharp form of eq. 38: tanh(ε / 2λ), attained by two items.

    Weights within [e^{−ε/λ}, e^{ε/λ}] move the most mass where they take their two ends on a set and its complement; a
    set of probability q under the tilt of r* then gains q / (q + (1 − q) e^{−2ε/λ}) − q, which is largest, and this,
    where q = 1 / (1 + e^{ε/λ}).
    """
    return np.asarray(np.tanh(np.divide(radius, temperature) / 2))


def loss_exponential(radius: Number, temperature: Number, reward_range: Number) -> Floats:
    """R_max (e^{2ε/λ} − 1): Theorem 4.4, eq. 13; 2 R_max times eq. 38."""
    return np.asarray(2 * reward_range * variation_exponential(radius, temperature))


def loss_linear(radius: Number, temperature: Number, reward_range: Number) -> Floats:
    """4 R_max ε / λ: Theorem 4.4, eq. 14. Infinite where λ < 2ε, about which it says nothing."""
    ratio = np.divide(radius, temperature)
    return np.asarray(np.where(ratio <= 1 / 2, 4 * reward_range * ratio, np.inf))


def loss_tanh(radius: Number, temperature: Number, reward_range: Number) -> Floats:
    """R_max tanh(ε / 2λ): not in the paper, below eqs. 13 and 14 everywhere and never above R_max.

    Eq. 30 with R_max in place of 2 R_max (a reward in [0, R_max] differs between two policies by at most R_max times
    their total variation), and the sharp form of eq. 38.
    """
    return np.asarray(reward_range * variation_tanh(radius, temperature))


def safe_temperature(radius: float, tolerance: float, reward_range: float) -> float:
    """λ = 2ε / ln(1 + τ / R_max): eq. 15, from which on eq. 13 keeps the loss within the tolerance τ > 0."""
    return 2 * radius / math.log1p(tolerance / reward_range)


def safe_temperature_tanh(radius: float, tolerance: float, reward_range: float) -> float:
    """λ = ε / (2 artanh(τ / R_max)), from which on ``loss_tanh`` is at most τ > 0; 0 (any λ) for τ ≥ R_max."""
    if tolerance >= reward_range:
        return 0.0
    return radius / (2 * math.atanh(tolerance / reward_range))


def tilt(log_policy: Floats, reward: Floats, temperature: float) -> Floats:
    """log π with π = π_β exp(r / λ) / Z: eq. 7, the optimum of eqs. 3 and 11. Shape (..., V)."""
    logit = log_policy + (reward - reward.max(axis=-1, keepdims=True)) / temperature
    logit = logit - logit.max(axis=-1, keepdims=True)  # where π_β of the best item is tiny
    return np.asarray(logit - np.log(np.exp(logit).sum(axis=-1, keepdims=True)))


def value(log_policy: Floats, reward: Floats) -> Floats:
    """V(π) = E_π r, shape (...)."""
    return np.asarray((np.exp(log_policy) * reward).sum(axis=-1))


def kl(log_policy: Floats, log_reference: Floats) -> Floats:
    """KL(π ‖ reference) of eqs. 2 and 3, in nats, shape (...)."""
    return value(log_policy, log_policy - log_reference)


def total_variation(log_policy: Floats, log_other: Floats) -> Floats:
    """Half the sum of |π − other|: D_TV of eqs. 30, 36 and 38, shape (...)."""
    return np.asarray(np.abs(np.exp(log_policy) - np.exp(log_other)).sum(axis=-1) / 2)


def certainty_equivalent(reward: Floats, deviation: Number, temperature: float) -> Floats:
    """λ ln E exp(r̂ / λ) = r* + σ² / 2λ for Gaussian noise of SD σ that each event draws anew.

    It is what eq. 11 tilts by then: its optimum is π_β(a | s) E[exp(r̂ / λ) | s, a] / Z(s). Where σ is the same for all
    items that is the tilt of r*; otherwise noisier items gain: the policy seeks risk, the more the smaller λ is.
    """
    return np.asarray(reward + np.square(deviation) / (2 * temperature))


def worst_two_items(radius: float, temperature: float, gap: Number) -> tuple[Floats, Floats, Floats]:
    """(log π_β, r*, ξ), each (..., 2): two items, r* = ``gap`` and 0, the noise ε against the good and for the bad one.

    π_β of the bad item is the one that loses most, 1 / (1 + e^{(2ε − gap) / 2λ}). The loss is
    gap · tanh((2ε − gap) / 4λ): nearly 2ε for small λ and a gap just below 2ε, and nearly R_max tanh(ε / 2λ) for a
    gap R_max that is small beside ε and λ. ``gap`` has shape (...).
    """
    half = (2 * radius - np.asarray(gap)) / (2 * temperature)
    log_policy = -np.logaddexp(0, np.stack([-half, half], axis=-1))
    reward = np.stack(np.broadcast_arrays(gap, 0.0), axis=-1)
    return log_policy, reward, np.broadcast_to([-radius, radius], reward.shape)


def one_good_item(bad_noise: Floats, good_noise: Floats, gap: Floats, temperature: float) -> Floats:
    """Loss of π_λ where one item is worth ``gap`` more than all the others, and π_β all but always chooses it.

    The N − 1 bad items share ``RARE`` of π_β evenly; they are worked as one item of noisy reward
    λ ln mean exp(ξ / λ), which the tilt cannot tell from them.

    Args:
        bad_noise: (..., N − 1).
        good_noise, gap: (...).
    """
    top = bad_noise.max(axis=-1)
    together = top + temperature * np.log(np.exp((bad_noise - top[..., None]) / temperature).mean(axis=-1))
    log_policy = np.log([1 - RARE, RARE])
    reward = np.stack(np.broadcast_arrays(gap, 0.0), axis=-1)
    noisy = np.stack(np.broadcast_arrays(gap + good_noise, together), axis=-1)
    return np.asarray(value(log_policy, reward) - value(tilt(log_policy, noisy, temperature), reward))
