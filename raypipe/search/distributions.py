"""The ranges of a trial's parameters as JSON, in which records hold them."""

from __future__ import annotations

from collections.abc import Mapping

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution


def pack_distributions(distributions: Mapping[str, BaseDistribution]) -> dict[str, str]:
    """Return Optuna's distributions as JSON, by the parameter's name."""
    return {name: distribution_to_json(distribution) for name, distribution in distributions.items()}


def unpack_distributions(texts: Mapping[str, str]) -> dict[str, BaseDistribution]:
    """Return the distributions that `pack_distributions` was given."""
    return {name: json_to_distribution(text) for name, text in texts.items()}
