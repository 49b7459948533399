"""Text that others wrote, made fit for a log or a terminal."""


def escaped(text: str) -> str:
    r"""Return a text with all characters that do not print as in Python (``\x1b``)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str, most: int = 500) -> str:
    r"""Return a text in one line: white space as single spaces, control characters escaped.

    What does not print is written as in Python (``\x1b``), line breaks and direction marks too: a
    text can neither forge a line of a log nor reach the terminal that shows it.

    Parameters
    ----------
    text : str
        Of another device, or of a file.
    most : int (default: 500)
        Characters that are kept; ``…`` stands for the rest.
    """
    cut = text[: 4 * most]  # white space does not count, and a long text need not be read
    plain = escaped(" ".join(cut.split()))
    return plain if len(plain) <= most and len(cut) == len(text) else plain[: most - 1] + "…"
