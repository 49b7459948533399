"""The notebook in examples runs in a Jupyter kernel, as it stands."""

from pathlib import Path

import nbformat
from helpers import ROOT
from nbclient import NotebookClient


def test_the_notebook_runs_in_a_kernel(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "examples/notebook.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is kept without outputs"
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    html = [o["data"]["text/html"] for o in shown if "text/html" in o.get("data", {})]
    bars = [text for text in html if "<progress" in text]
    assert any('value="8" max="8"' in text for text in bars), "a bar, below the cell"
    assert any("all devices, mean" in text for text in html), "a run's table"
    figures = [o for o in shown if "application/vnd.plotly.v1+json" in o.get("data", {})]
    assert figures
    (last,) = notebook.cells[-1]["outputs"]
    assert last["data"]["text/plain"].startswith("(['")
    assert (tmp_path / "runs/notebook/dmml-kd/metrics.jsonl").exists()
    streams = "".join(o.get("text", "") for o in shown if o["output_type"] == "stream")
    assert "INFO" not in streams, "the log is in the run folder"
