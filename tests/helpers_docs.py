"""Reads the pages of the docs: their commands, and the files that they show."""

import re
from pathlib import Path


def commands(page: Path) -> list[str]:
    """Return the commands of a page's ``bash`` blocks, one a line, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [re.sub(r"\s+#.*$", "", line).strip() for line in lines]
    return [line for line in found if line and not line.startswith("#")]


def write_files(page: Path, folder: Path) -> None:
    """Write the files that a page shows: blocks that begin with ``# name``."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:python|text|toml)\n# (\S+\.\w+)\n(.*?)```", text, flags=re.DOTALL)
    for name, content in blocks:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
