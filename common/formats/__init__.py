"""Typed documents: bytes become a frozen value or a ``FormatError``; nothing here touches a file or the network."""
