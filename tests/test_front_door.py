"""`import tpn_ray` is cheap, and everything that it names is there."""

from __future__ import annotations

import doctest
import subprocess
import sys

import pytest

import tpn_ray

HEAVY = ("torch", "ray", "mlflow", "pyarrow", "numpy")


def test_the_examples() -> None:
    found = doctest.testmod(tpn_ray)
    assert found.attempted >= 5
    assert not found.failed


@pytest.mark.parametrize("name", tpn_ray.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(tpn_ray, name).__doc__
    assert name in dir(tpn_ray)


def test_names_are_not_hidden_by_packages_of_the_same_name() -> None:
    program = "import tpn_ray.training.run, tpn_ray.tuning.campaigns, tpn_ray; assert callable(tpn_ray.train)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_importing_imports_nothing_heavy() -> None:
    program = f"import sys, tpn_ray; sys.exit(bool({set(HEAVY)!r} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="module 'tpn_ray' has no attribute 'trian'; it has: RECIPES, "):
        tpn_ray.trian  # noqa: B018
