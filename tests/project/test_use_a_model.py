"""docs/howto/use-a-model.md, from start to end: files are written and commands run as shown."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from helpers_docs import commands, write_files
from typer.testing import CliRunner

from flwr_dmml.cli import app

PAGE = ROOT / "docs" / "howto" / "use-a-model.md"
SMALL = {"num-nodes": 6, "num-server-rounds": 3, "local-iterations": 5, "workers": 0}


def test_the_page_from_start_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All its commands, in order, but for pip and the fleet's; the run is a small one."""
    pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    write_files(PAGE, tmp_path)
    monkeypatch.chdir(tmp_path)
    skipped, said = [], list[str]()
    for line in commands(PAGE):
        words = shlex.split(line)
        if words[0] == "python":
            path = {**os.environ, "PYTHONPATH": str(ROOT)}
            done = subprocess.run([sys.executable, *words[1:]], capture_output=True, env=path)
            assert done.returncode == 0, done.stderr.decode()
            said.append(done.stdout.decode())
            continue
        if words[:2] in (["pip", "install"], ["flwr-dmml", "fleet"]):
            skipped.append(line)
            continue
        if words[1] == "simulate":
            words += [word for k, v in SMALL.items() for word in ("--set", f"{k}={v}")]
        done_here = CliRunner().invoke(app, words[1:], env={"COLUMNS": "200"})
        assert done_here.exit_code == 0, (line, done_here.output)
        said.append(done_here.stdout)
    assert len(skipped) == 2
    _, _, as_csv, _, in_python, exported, by_the_app = said
    shares = [float(share) for share in as_csv.splitlines()[1].split(",")[3:]]
    (row,) = json.loads((tmp_path / "seven.json").read_text())
    assert list(row["probabilities"].values()) == pytest.approx(shares, abs=1e-6)
    assert f"['{row['class']}']" in in_python and "['audio', 'image']" in in_python
    assert "input audio: float32 [batch, 2000]" in exported
    found, share = by_the_app.split()
    assert found == row["class"] and float(share) == pytest.approx(max(shares), abs=0.05)
