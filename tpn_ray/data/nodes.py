"""Which nodes of a cluster do what: labels that a node must have, resources that only some nodes declare. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tpn_ray.errors import ConfigError

Labels = dict[str, str]


def labels_of(flags: Sequence[str], name: str) -> Labels:
    """KEY=VALUE flags as a label selector of Ray; VALUE may also be !VALUE, in(A,B) or !in(A,B)."""
    return dict(_pair(flag, name, "pool=cpu") for flag in flags)


def amounts_of(flags: Sequence[str], name: str) -> dict[str, float]:
    """NAME=AMOUNT flags as resources of Ray."""
    amounts = {}
    for flag in flags:
        resource, amount = _pair(flag, name, "spot=1")
        try:
            amounts[resource] = float(amount)
        except ValueError:
            raise ConfigError(f"{name}: {flag!r} has no number after '='; write it like spot=1") from None
        if not 0 < amounts[resource] < float("inf"):
            raise ConfigError(f"{name}: the amount of {flag!r} must be above 0")
        if resource in ("CPU", "GPU"):
            raise ConfigError(f"{name}: {resource} has a flag of its own, --{resource.lower()}s-per-worker")
    return amounts


def has_labels(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a node with these labels is one of those wanted, by Ray's rules."""
    return all(_has(labels.get(key), value) for key, value in wanted.items())


def _has(value: str | None, wanted: str) -> bool:
    if wanted.startswith("!"):
        return not _has(value, wanted[1:])
    if wanted.startswith("in(") and wanted.endswith(")"):
        return value in [choice.strip() for choice in wanted[3:-1].split(",")]
    return value == wanted


def _pair(flag: str, name: str, example: str) -> tuple[str, str]:
    key, _, value = flag.partition("=")
    if not key or not value:
        raise ConfigError(f"{name}: {flag!r} must be of the form {example}")
    return key, value
