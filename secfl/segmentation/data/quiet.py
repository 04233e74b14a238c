"""Other libraries' warnings and log lines may quote what stands in a file; they are kept from being printed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quietly"]


@contextmanager
def quietly() -> Iterator[None]:
    """Nothing that pydicom, highdicom, nibabel or Pillow say gets out; afterwards all is as before.

    A reader's warning about a malformed element quotes the element, which may be a patient's name. Everybody's
    log lines are held back meanwhile, because such a library may make its loggers at any time.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
