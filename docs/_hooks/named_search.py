"""The theme's search dialog gets the name that assistive technology reads out."""

from typing import Any

DIALOG = 'data-md-component="search" role="dialog"'


def on_post_page(output: str, **_: Any) -> str:
    """Name the dialog; mkdocs calls this."""
    return output.replace(DIALOG, f'{DIALOG} aria-label="Search"')
