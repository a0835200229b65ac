"""The names of classes and files, the same on every system."""

from __future__ import annotations

import os
import unicodedata


def class_name(text: str) -> str:
    """A class's name in the one form (Unicode's NFC) in which names are compared.

    macOS writes the folder of a name such as "café" in another form than Linux and Windows do.
    """
    return unicodedata.normalize("NFC", text)


def printable(name: str) -> str:
    """The name as it can stand in a line of text: one that holds a line break or no UTF-8 is quoted."""
    return name if name.isprintable() else repr(name)


def utf8_name(name: str) -> str:
    """The name of a file as UTF-8, whatever encoding the process's locale makes Python read it in.

    Bytes that are no UTF-8 stay surrogates.
    """
    return os.fsencode(name).decode("utf-8", "surrogateescape")
