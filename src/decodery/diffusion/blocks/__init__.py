"""Block schedules: where the next block of a canvas ends."""

from decodery.diffusion.blocks.base import BlockSchedule as BlockSchedule
from decodery.diffusion.blocks.base import FixedBlocks as FixedBlocks
