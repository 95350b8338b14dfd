"""Pictures from the network, to be classified: of bounded size and time, and not kept."""

import time
from collections.abc import Iterable
from urllib.parse import urlsplit

from jeffnet.errors import ImageError, one_line
from jeffnet.system.network import is_offline
from jeffnet.weights.download import without_password

# A photograph in full size has 10 to 30 MB.
MOST_BYTES = 2**26
MOST_SECONDS = 60
_STEP_SECONDS = 15  # longest wait for the next bytes


def fetch_picture(url: str) -> bytes:
    """The content of an http or https address; redirections are followed to these only.

    Raises:
      ImageError: it cannot be had, has more than `MOST_BYTES`, or takes longer than `MOST_SECONDS`.
    """
    import httpx2

    shown = without_password(url)
    scheme = urlsplit(url).scheme.lower()
    if scheme not in ("http", "https"):
        raise ImageError(f"image {shown!r}: {scheme} cannot be read, give an http or https address or a file")
    if is_offline():
        raise ImageError(f"image {shown!r}: offline; unset JEFFNET_OFFLINE and HF_HUB_OFFLINE, or give a file")
    try:
        headers = {"User-Agent": "jeffnet", "Accept-Encoding": "identity"}
        with httpx2.stream("GET", url, headers=headers, follow_redirects=True, timeout=_STEP_SECONDS) as response:
            if not response.is_success:
                raise ImageError(f"image {shown!r}: the server answers {response.status_code}; check the address")
            return _received(response.iter_bytes(), shown)
    # The second for what a server makes of its answer, such as a length that is no number.
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(
            f"image {shown!r} cannot be fetched ({one_line(error)}): check the address and the network"
        ) from error


def _received(chunks: Iterable[bytes], shown: str) -> bytes:
    end, content = time.monotonic() + MOST_SECONDS, bytearray()
    for chunk in chunks:
        content += chunk
        if len(content) > MOST_BYTES:
            raise ImageError(f"image {shown!r} has more than {MOST_BYTES:,} bytes: download it, and give the file")
        if time.monotonic() > end:
            raise ImageError(f"image {shown!r} takes longer than {MOST_SECONDS} s: download it, and give the file")
    return bytes(content)
