"""Many samples in shards on disk: computed chunk by chunk, resumable, and read one at a time."""

from sde_models.shards.folder import remove_shards
from sde_models.shards.reader import Shards

__all__ = ["Shards", "remove_shards"]
