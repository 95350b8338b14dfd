"""Whether the network may be used."""

import os


def is_offline() -> bool:
    """Whether it may not: JEFFNET_OFFLINE is set, or HF_HUB_OFFLINE was when huggingface_hub was imported."""
    from huggingface_hub import constants

    return os.environ.get("JEFFNET_OFFLINE", "").lower() in ("1", "true", "yes", "on") or constants.is_offline_mode()
