"""lab.py: finding notebooks, their parameters taken strictly, and running tiny ones for real (papermill, a kernel)."""

import json
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from localai_clusters import checkpoint, lab
from localai_clusters.authoring import build
from localai_clusters.cli import main
from localai_clusters.exercises.where import find_lab
from localai_clusters.lab import CHECKPOINT_MIME, LabFailed, Parameter

CHAPTER = "07_vllm_distributed_serving"
PARAMETERS = """\
student: str = "student"  # your id
count: int = 2
share: float = 0.9
loud: bool = False
ratio = 1.5
folder = Path("x")
"""
CHECKPOINT = f"""
from IPython.display import display
display({{"{CHECKPOINT_MIME}": {{"path": "checkpoints/x.json", "proves": "nothing"}}, "text/plain": ""}}, raw=True)
"""


@pytest.fixture
def notebook(tmp_path):
    """Writes a notebook with the cells given, the first of them its parameters, and returns its path."""

    def write(*sources: str, name: str = "tiny.ipynb") -> Path:
        first, *others = [new_code_cell(source) for source in sources]
        first.metadata["tags"] = ["parameters"]
        kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
        cells = [new_markdown_cell("# A tiny lab"), first, *others]
        path = tmp_path / name
        nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
        return path

    return write


def run(path: Path, output: Path | None = None, **parameters) -> lab.Result:
    return lab.run(path, parameters, output or path.with_name("executed.ipynb"))


def outputs_of(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", ()))


# Which notebook


@pytest.mark.parametrize("name", ["07", "7", CHAPTER])
def test_a_chapter_is_found_by_its_number_and_its_name(name):
    assert lab.find_notebook(name) == lab.course_root() / "course" / f"{CHAPTER}.ipynb"


def test_a_chapter_is_found_by_its_path(notebook):
    path = notebook("x: int = 1")
    assert lab.find_notebook(str(path)) == path


@pytest.mark.parametrize("name", ["08", "0", "", "course", ".", "07.ipynb", "no/such.ipynb", "²", "7_", "a\0b", "-1"])
def test_an_unknown_lab_lists_the_known_ones(name):
    with pytest.raises(ValueError) as caught:
        lab.find_notebook(name)
    assert str(caught.value).startswith(f"there is no lab {name!r}; there is: ")
    assert CHAPTER in str(caught.value)


def test_a_directory_named_like_a_notebook_is_none(tmp_path):
    (tmp_path / "x.ipynb").mkdir()
    with pytest.raises(ValueError, match="there is no lab"):
        lab.find_notebook(str(tmp_path / "x.ipynb"))


# Which parameters


def test_parameters_are_typed_by_annotation_or_default(notebook):
    assert lab.parameters_of(notebook(PARAMETERS)) == [
        Parameter("student", "str", '"student"', "your id"),
        Parameter("count", "int", "2", ""),
        Parameter("share", "float", "0.9", ""),
        Parameter("loud", "bool", "False", ""),
        Parameter("ratio", "float", "1.5", ""),
        Parameter("folder", "str", 'Path("x")', ""),
    ]


def test_the_chapters_parameters():
    types = {p.name: p.type for p in lab.parameters_of(lab.find_notebook("07"))}
    assert types["student"] == types["model"] == types["dtype"] == "str"
    assert types["tensor_parallel_size"] == types["pipeline_parallel_size"] == types["max_tokens"] == "int"
    assert all(p.help for p in lab.parameters_of(lab.find_notebook("07")))


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ([], {}),
        (["count=3"], {"count": 3}),
        (["count=-3", "share=1", "loud=true"], {"count": -3, "share": 1.0, "loud": True}),
        (["loud=False"], {"loud": False}),
        (["student=a=b"], {"student": "a=b"}),
        (["student="], {"student": ""}),
        (["student=7"], {"student": "7"}),
        (["count=1", "count=2"], {"count": 2}),
    ],
)
def test_values_get_the_notebooks_types(notebook, given, values):
    found = lab.parse_parameters(notebook(PARAMETERS), given)
    assert found == values
    assert {name: type(value) for name, value in found.items()} == {name: type(v) for name, v in values.items()}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("count=two", "parameter count is an int (default 2), not 'two'"),
        ("count=2.0", "parameter count is an int (default 2), not '2.0'"),
        ("count=", "parameter count is an int (default 2), not ''"),
        ("count=True", "parameter count is an int (default 2), not 'True'"),
        ("share=much", "parameter share is a float (default 0.9), not 'much'"),
        ("loud=yes", "parameter loud is a bool (default False), not 'yes'"),
        ("loud=1", "parameter loud is a bool (default False), not '1'"),
        ("student", "'student' is not NAME=VALUE; for example -p student=s123"),
        ("", "'' is not NAME=VALUE; for example -p student=s123"),
    ],
)
def test_an_ill_typed_parameter_is_an_error(notebook, given, message):
    with pytest.raises(ValueError) as caught:
        lab.parse_parameters(notebook(PARAMETERS), [given])
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["studnet", "Student", " student", "student ", "zzz", ""])
def test_an_unknown_parameter_lists_the_known_ones(notebook, name):
    with pytest.raises(ValueError) as caught:
        lab.parse_parameters(notebook(PARAMETERS), [f"{name}=x"])
    first, *listed = str(caught.value).splitlines()
    near = "" if name in ("zzz", "") else "; did you mean student?"
    assert first == f"tiny has no parameter {name!r}{near}"
    assert listed[:3] == ["It has:", '  student: str = "student"', "  count: int = 2"]


# What is not a notebook


@pytest.mark.parametrize(
    "content",
    ["", "text", "[]", "{}", '"x"', "\0", '{"nbformat": 4', '{"nbformat": 4, "nbformat_minor": 5}',
     '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": 3}',
     '{"nbformat": 99, "nbformat_minor": 0, "metadata": {}, "cells": []}', b"\xff\xfe{}"],
)  # fmt: skip
def test_an_invalid_notebook_is_one_message(tmp_path, content):
    path = tmp_path / "bad.ipynb"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as caught:
        lab.parameters_of(path)
    assert str(caught.value).startswith(f"{path} is not a notebook: ")
    assert "\n" not in str(caught.value)


def test_a_notebook_with_no_parameters_cell_has_none(notebook):
    path = notebook("x = 1")
    text = json.loads(path.read_text())
    text["cells"][1]["metadata"] = {}
    path.write_text(json.dumps(text))
    assert lab.parameters_of(path) == []
    with pytest.raises(ValueError, match="tiny has no parameter 'x'"):
        lab.parse_parameters(path, ["x=1"])


# Running


def test_a_notebook_that_writes_a_checkpoint_and_its_parameters_arrive_as_typed(notebook):
    awkward = 'it\'s "quoted"\nof two lines, {braces}, a \\ and ünïcode ☃ $HOME'
    path = notebook(PARAMETERS.replace('Path("x")', "0"), "print(repr((student, count, share, loud)))", CHECKPOINT)
    values = lab.parse_parameters(path, [f"student={awkward}", "count=5", "loud=true"])
    result = run(path, **values)
    assert result.checkpoints == ((Path("checkpoints/x.json"), "nothing"),)
    assert outputs_of(result.notebook) == repr((awkward, 5, 0.9, True)) + "\n"
    assert json.loads(json.dumps(result.to_dict())) == {
        "notebook": str(result.notebook),
        "checkpoints": [{"path": "checkpoints/x.json", "proves": "nothing"}],
    }


def test_a_notebook_runs_beside_its_own_files_and_braces_in_its_path_are_kept(notebook, monkeypatch):
    path = notebook("x: int = 1", f"import os; print(os.getcwd()){CHECKPOINT}", name="{x} of {y}.ipynb")
    elsewhere = path.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    result = lab.run(Path("..") / path.name, {}, Path("deep/er/{x}.ipynb"))
    assert result.notebook == Path("deep/er/{x}.ipynb") and result.notebook.is_file()
    assert outputs_of(result.notebook).strip() == str(path.parent)


def test_a_cell_that_fails_is_named_and_the_executed_notebook_is_kept(notebook):
    path = notebook("x: int = 1", "print('before')", "raise KeyError('<b>the reason</b>')", CHECKPOINT)
    with pytest.raises(LabFailed) as caught:
        run(path, x=3)
    kept = path.with_name("executed.ipynb")
    assert str(caught.value).splitlines()[-1] == f"executed notebook: {kept}"
    assert str(caught.value).startswith("cell [4] of tiny.ipynb failed: KeyError: '<b>the reason</b>'\n")
    numbers = {cell.get("execution_count"): cell.source for cell in nbformat.read(kept, as_version=4).cells}
    assert numbers[4] == "raise KeyError('<b>the reason</b>')"  # [4] is what JupyterLab shows beside it
    assert outputs_of(kept).startswith("before\n")


def test_a_notebook_that_writes_no_checkpoint_has_failed(notebook):
    path = notebook("x: int = 1", "print('done')")
    with pytest.raises(LabFailed, match="ran to its end and wrote no checkpoint\nexecuted notebook: ") as caught:
        run(path)
    assert outputs_of(path.with_name("executed.ipynb")) == "done\n"
    assert "Traceback" not in "".join(caught.value._render_traceback_())


def test_a_kernel_that_dies_is_one_message(notebook):
    path = notebook("x: int = 1", "import os; os._exit(1)", CHECKPOINT)
    with pytest.raises(LabFailed, match=r"the Python that ran tiny\.ipynb was killed or crashed\nexecuted notebook: "):
        run(path)


def test_the_notebook_is_never_overwritten_by_its_own_execution(notebook):
    path = notebook("x: int = 1", CHECKPOINT)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="is the notebook itself"):
        lab.run(path, {}, path.parent / "." / path.name)
    assert path.read_bytes() == before


# Labs with exercises


@pytest.fixture
def tiny_lab(tmp_path, monkeypatch):
    """A lab that is refused by preflight, so that its record needs no server. Returns its files."""
    source = '''\
# %% [markdown]
# # Lab 3.2: Tiny

# %% tags=["parameters"]
student: str = "student"  # your id
factor: int = 2  # of the answer

# %% tags=["exercises"]
from localai_clusters.exercises import Number, Text
ci = {"factor": 3}
size = Number("How many?", lambda given: given.factor * 10, unit="bytes", hints=("ten times",), solution="ten times")
why = Text("Why?", words=2)

# %%
import localai_clusters as lac
from localai_clusters.observed import Failure
lab = lac.open_lab("03/2", student=student)
lab.given(factor=factor)

# %%
size = ...
# BEGIN SOLUTION
size = factor * 10
# END SOLUTION
lab.size.check(size)

# %%
why = ...
# BEGIN SOLUTION
why = "it is so"
# END SOLUTION
lab.why.check(why)

# %%
refused = Failure("no-server", "refused by preflight", "heads", "9 heads", 0.1, lac.ServePlan())
recorded = lab.record(failures=[refused], folder="records")
recorded
'''
    folder = tmp_path / "03_tiny_chapter"
    folder.mkdir()
    (folder / "2_tiny.py").write_text(source)
    rubric = "rubric: 1\nlab: tiny\nchapter: 3\ntitle: Tiny\nevidence: dry-run\ncriteria:\n"
    rubric += "  - {id: size, title: Size, points: 1, kind: exercise, exercise: size}\n"
    (folder / "2_tiny.rubric.yaml").write_text(rubric)
    monkeypatch.chdir(folder)
    files = find_lab("03/2")
    build(files)
    return files


def lab_verb(*arguments: str, code: int = 0):
    done = CliRunner().invoke(main, ["lab", *arguments, "-o", "executed.ipynb"])
    assert done.exit_code == code, done.output
    return done


def test_an_untouched_lab_runs_and_its_exercises_are_counted(tiny_lab):
    page = lab_verb("tiny").stdout
    assert "2 exercises: 2 not tried yet\n  … size  Put your answer in place of the dots" in page
    record = checkpoint.read(next(tiny_lab.folder.glob("records/student/*.json")))
    assert [(each.id, each.status) for each in record.exercises] == [("size", "not-tried"), ("why", "not-tried")]
    assert record.answers == {}


def test_a_solved_lab_is_right_and_its_answers_are_recorded(tiny_lab):
    page = lab_verb("03/2", "--solved", "--ci").stdout
    assert "2 exercises: 1 right, 1 for a person to mark\n  ✓ size  30 bytes is right." in page
    record = checkpoint.read(next(tiny_lab.folder.glob("records/student/*.json")))
    assert record.answers == {"size": 30, "why": "it is so"}
    assert [(each.status, each.attempts) for each in record.exercises] == [("right", 1), ("by-hand", 1)]


def test_what_is_typed_wins_over_the_authors_small_parameters(tiny_lab):
    said = json.loads(lab_verb("tiny", "--solved", "--ci", "-p", "factor=7", "--json").stdout)
    assert said["exercises"][0] == {"id": "size", "status": "right", "sentence": "70 bytes is right."}


def test_a_solution_that_is_not_right_is_named_and_exit_code_1(tiny_lab):
    text = tiny_lab.source.read_text()
    tiny_lab.source.write_text(text.replace("size = factor * 10\n", "size = factor * 5\n"))
    done = lab_verb("tiny", "--solved", code=1)
    assert "size is wrong with its solution: 10 bytes is not it." in done.stderr


def test_a_filled_in_notebook_is_run_as_it_is(tiny_lab):
    text = tiny_lab.notebook.read_text().replace('"size = ...\\n"', '"size = 7\\n"')
    tiny_lab.notebook.write_text(text)
    done = lab_verb("tiny")
    assert "✗ size  7 bytes is not it." in done.stdout and "is not what its source builds" in done.stderr
    tiny_lab.source.unlink()
    done = lab_verb(str(tiny_lab.notebook), "--ci")
    assert "✗ size  7 bytes is not it." in done.stdout and not done.stderr.startswith("note")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["07", "--solved"], "has no exercises, and so no solutions"),
        (["03/3"], "there is no lab '03/3'; there is: 07_vllm"),
        (["tiny", "-p", "faktor=2"], "2_tiny has no parameter 'faktor'; did you mean factor?"),
    ],
)
def test_a_lab_that_cannot_be_run_is_one_message(tiny_lab, arguments, said):
    assert said in lab_verb(*arguments, code=2).stderr


def test_without_the_source_there_are_no_solutions_and_without_the_notebook_nothing_to_run(tiny_lab):
    tiny_lab.notebook.unlink()
    assert "is not there yet: localai-clusters course build 03/2" in lab_verb("tiny", code=2).stderr
    tiny_lab.source.unlink()
    assert "the solutions of lab 03/2 are not here" in lab_verb("tiny", "--solved", code=2).stderr
