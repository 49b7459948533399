"""The page on Python: its files run, as they stand."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from helpers_docs import write_files


@pytest.mark.parametrize(
    ("file", "said"), [("first.py", "dmml-kd     10"), ("mine.py", "heart+motion")]
)
def test_a_file_of_the_page_runs(file: str, said: str, tmp_path: Path) -> None:
    write_files(ROOT / "docs/howto/python.md", tmp_path)
    done = subprocess.run([sys.executable, file], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
