"""The version of the package, readable without importing anything."""

__version__ = "0.2.0"


def update_hint(wrote: object) -> str:
    """End a message about a file: "; mindrepvgg 0.9.0 wrote it, this is 0.2.0: update mindrepvgg".

    Args:
        wrote: the version that wrote the file, as the file tells it.

    Returns:
        The hint where a newer version wrote the file; otherwise nothing.
    """

    def numbers(version):
        return [int(part) for part in version.split(".") if part.isdecimal()]

    text = str(wrote)[:20]
    if numbers(text) <= numbers(__version__):
        return ""
    return f"; mindrepvgg {ascii(text)[1:-1]} wrote it, this is {__version__}: update mindrepvgg"
