"""Temporary: until the parameters' own file is there."""

from dataclasses import dataclass

from decodery.engine.method import *
from decodery.engine.method import Method


@dataclass(frozen=True)
class Declared:
    __post_init__ = Method.__post_init__
    parameters = classmethod(Method.parameters.__func__)
    spec = Method.spec
