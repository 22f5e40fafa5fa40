"""Both notebooks, executed from top to bottom on a tiny toy city, as a user runs them."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ("run_DELG.ipynb", "utils_notebook.ipynb")
# What is put behind a notebook's cell of parameters.
CITY = (
    "--image_size 96 --train_streets 1 --val_streets 1 --test_streets 1 --cells_per_street 2 "
    "--val_queries 12 --test_queries 12 --workers 1"
)
TINY = {
    "run_DELG.ipynb": f'''
CITY = "{CITY}"
QUICK = "--backbone resnet18 --image_size 64 --resize_test_imgs --batch_size 8 --num_workers 0"
TRAINING = f"{{QUICK}} --pretrained none --train_all_layers --iterations_per_epoch 8 --epochs_num 1"
LOCAL_TRAINING = f"{{QUICK}} --iterations_per_epoch 4 --epochs_num 1"
EVALUATION = "--image_size 64 --resize_test_imgs --num_workers 0"
''',
    "utils_notebook.ipynb": f'''
CITY = "{CITY}"
EXTRACT = ExtractConfig(resize="shorter", size=96, local_scales=(1.0, 1.41))
RESOURCES = Resources(num_workers=0)
TUNING = "--num_features all --max_distance none 0.9 --residual 8 --model affine --rule mutual"
''',
}
# Code cells that show a picture, by the start of a line in them.
PICTURES = ("looks.", "curves.", "display(Image", "    display(Image")


def read(name: str) -> NotebookNode:
    return nbformat.read(ROOT / name, as_version=4)


def executed(name: str, folder: Path) -> NotebookNode:
    """The notebook after all its cells have run in ``folder``, by its own kernel."""
    notebook = read(name)
    (position,) = (
        row
        for row, cell in enumerate(notebook.cells)
        if "parameters" in cell.metadata.get("tags", [])
    )
    notebook.cells.insert(position + 1, nbformat.v4.new_code_cell(TINY[name]))
    (folder / "AG").symlink_to(ROOT / "AG")
    client = NotebookClient(
        notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()  # raises where a cell does
    return notebook


def printed(cell: NotebookNode) -> str:
    return "".join(each.text for each in cell.outputs if each.output_type == "stream")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_all_cells_run_and_every_picture_comes_out(name, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = executed(name, tmp_path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        said = printed(cell)
        assert "error: " not in said, said
        assert "Traceback" not in said, said
    drawn = [cell for cell in cells if any(f"\n{p}" in f"\n{cell.source}" for p in PICTURES)]
    assert len(drawn) >= 5
    for cell in drawn:
        kinds = {kind for each in cell.outputs for kind in each.get("data", {})}
        assert kinds & {"image/png", "image/jpeg"}, cell.source
    tables = [cell for cell in cells if "reranked " in printed(cell)]
    assert tables  # recalls before and after re-ranking
    assert list(tmp_path.glob("logs/notebook/*/*/report.html"))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_stored_clean(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown"
    assert "colab" in notebook.cells[0].source
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count is None
            assert len(str(cell.outputs)) < 100_000


def test_both_begin_with_the_same_installation():
    first = [
        next(cell.source for cell in read(name).cells if cell.cell_type == "code")
        for name in NOTEBOOKS
    ]
    assert first[0] == first[1]
    assert "-c installed.txt" in first[0]  # the installed torch stays


def test_what_the_first_cell_installs_is_found_in_the_same_process(tmp_path):
    # An editable install is a .pth file, which Python reads at its start and in site.main().
    name = "a_module_that_is_nowhere_else"
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / f"{name}.py").touch()
    script = f"""
import importlib.util, pathlib, site, sys
packages = {str(tmp_path / "packages")!r}
pathlib.Path(packages).mkdir()
site.getsitepackages = lambda *_: [packages]
site.addsitedir(packages)
assert importlib.util.find_spec({name!r}) is None
pathlib.Path(packages, "x.pth").write_text({str(tmp_path / "source")!r})
site.main()
assert importlib.util.find_spec({name!r}) is not None
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    cells = [cell.source for cell in read(NOTEBOOKS[0]).cells if cell.cell_type == "code"]
    assert "site.main()" in cells[0]
