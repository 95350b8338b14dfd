"""Data sets, transforms of pictures, and batches."""

from typing import TYPE_CHECKING, Any

__all__ = ["Shard", "loader"]

if TYPE_CHECKING:
    from jeffnet.data.batches import Shard as Shard
    from jeffnet.data.own_loop import loader as loader
else:

    def __getattr__(name: str) -> Any:
        # When it is first used, since Grain takes a while to import.
        if name == "loader":
            from jeffnet.data.own_loop import loader

            return loader
        if name == "Shard":
            from jeffnet.data.batches import Shard

            return Shard
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
