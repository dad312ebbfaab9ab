"""Unmasking rules: which masked positions get which tokens."""

from decodery.diffusion.unmasking.base import CanvasStep as CanvasStep
from decodery.diffusion.unmasking.base import Commit as Commit
from decodery.diffusion.unmasking.base import Rule as Rule
