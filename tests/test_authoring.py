"""authoring/: notebooks and sealed exercises from one source, mistakes with lines, a new lab, the students' archive."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import jupytext
import nbformat
import pytest
from click.testing import CliRunner

from localai_clusters.authoring import building, markers, new_lab, read_source, release
from localai_clusters.authoring.archive import ROOT_FILES, TREES, ReleaseError
from localai_clusters.authoring.source import SourceError
from localai_clusters.cli import main
from localai_clusters.exercises.sealed import unseal
from localai_clusters.exercises.where import LabFiles, all_labs
from localai_clusters.grading.rubric_file import read_rubric
from localai_clusters.lab import course_root

GOOD = '''\
# %% [markdown]
# # Lab 3.2: Tiny
#
# A *text*, with `code` and ünïcode ☃.

# %% tags=["parameters"]
student: str = "student"  # your id
count: int = 3  # of something

# %% tags=["exercises"]
from localai_clusters.exercises import Number, Text

ci = {"count": 1}
size = Number("How many?", lambda given: given.count, hints=("count them",), solution="they were counted")
why = Text("Why?", words=2)

# %%
import localai_clusters as lac

lab = lac.open_lab("03/2", student=student)
lab.given(count=count)

# %%
size = ...
# BEGIN SOLUTION
size = 3  # the secret
# END SOLUTION
lab.size.check(size)
# lab.size.hint()

# %%
why = ...
# BEGIN SOLUTION
why = "so it is"
# END SOLUTION
lab.why.check(why)

# %%
recorded = lab.record()
recorded
'''


RUBRIC = """\
rubric: 1
lab: tiny
chapter: 3
title: Tiny
evidence: dry-run
criteria:
  - {id: size, title: How many, points: 1, kind: exercise, exercise: size}
  - {id: why, title: Why, points: 1, kind: text, answer: why, words: 2}
"""


@pytest.fixture
def lab(tmp_path):
    """Writes a source and returns its files."""

    def write(text: str = GOOD) -> LabFiles:
        folder = tmp_path / "03_tiny_chapter"
        folder.mkdir(exist_ok=True)
        files = LabFiles(folder, "2_tiny", 3)
        files.source.write_text(text)
        files.rubric.write_text(RUBRIC)
        return files

    return write


def mistakes(files: LabFiles) -> list[str]:
    """What is wrong in it, as ``LINE: sentence``."""
    with pytest.raises(SourceError) as caught:
        read_source(files)
    return [f"{mistake.line}: {mistake.sentence}" for mistake in caught.value.mistakes]


def sources(text: str) -> str:
    return "\n---\n".join(cell.source for cell in nbformat.reads(text, as_version=4).cells)


# Building


def test_the_students_notebook_has_no_solutions_and_no_exercises(lab):
    text = building.student_notebook(read_source(lab()))
    nbformat.validate(nbformat.reads(text, as_version=4))
    page = sources(text)
    assert "size = ...\nlab.size.check(size)\n# lab.size.hint()" in page
    assert not any(word in page for word in ("SOLUTION", "secret", "so it is", "How many", "Number", "ci ="))


def test_the_solved_notebook_has_them_and_no_markers(lab):
    page = sources(building.solved_notebook(read_source(lab())))
    assert "size = ...\nsize = 3  # the secret\nlab.size.check(size)" in page
    assert "SOLUTION" not in page and "How many" not in page


def test_the_same_source_gives_the_same_bytes_and_a_second_build_writes_nothing(lab):
    files = lab()
    assert building.build(files) == ["2_tiny.ipynb", "2_tiny.sealed"]
    first = [files.notebook.read_bytes(), files.sealed.read_bytes()]
    assert building.build(files) == [] and building.stale(files) == []
    files.notebook.unlink()
    files.sealed.unlink()
    building.build(files)
    assert [files.notebook.read_bytes(), files.sealed.read_bytes()] == first


@pytest.mark.parametrize(("old", "new"), [("How many?", "How much?"), ("A *text*", "Some text")])
def test_a_changed_source_makes_its_files_stale(lab, old, new):
    files = lab()
    building.build(files)
    lab(GOOD.replace(old, new))
    assert "2_tiny.sealed" in building.stale(files)
    assert ("2_tiny.ipynb" in building.stale(files)) == (old == "A *text*")
    files.sealed.write_text("{}")
    assert "2_tiny.sealed" in building.stale(files)


def test_the_sealed_file_has_the_exercises_the_small_parameters_and_the_sources_digest(lab):
    files = lab()
    building.build(files)
    sealed = unseal(files.sealed)
    assert (sealed.chapter, sealed.number, sealed.lab, sealed.title, sealed.ci) == (3, 2, "tiny", "Tiny", {"count": 1})
    assert sealed.source_sha256 == read_source(files).sha256
    assert "How many" not in files.sealed.read_text()


def test_jupytext_reads_the_same_cells(lab):
    files = lab()
    theirs = [(cell.cell_type, cell.source) for cell in jupytext.read(files.source, fmt="py:percent").cells]
    assert theirs == [(cell.kind, cell.source) for cell in read_source(files).cells]


def test_what_a_linter_wants_of_a_committed_notebook(lab):
    files = lab()
    building.build(files)
    done = subprocess.run([sys.executable, "-m", "nbstripout", "--verify", files.notebook], capture_output=True)
    assert done.returncode == 0, done.stdout


# Mistakes, each with its line


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("# END SOLUTION\nlab.size", "lab.size", "25: # BEGIN SOLUTION without a # END SOLUTION below it"),
        ("# BEGIN SOLUTION\nsize", "size", "26: # END SOLUTION without a # BEGIN SOLUTION above it"),
        ("# BEGIN SOLUTION\nsize", "# BEGIN SOLUTION\n# BEGIN SOLUTION\nsize", "26: # BEGIN SOLUTION inside"),
        ("# BEGIN SOLUTION\nsize", "# begin solution\nsize", "25: this is nearly a marker"),
        ("# BEGIN SOLUTION\nsize", "### BEGIN_SOLUTION\nsize", "25: this is nearly a marker"),
        ("lab.size.check(size)\n", "", "14: no cell checks the exercise size: lab.size.check(size)"),
        ("lab.size.check", "lab.siez.check", "28: there is no exercise 'siez' (size, why)"),
        ("# lab.size.hint()", "lab.size.hint()", "29: lab.size.hint() is run with the notebook; make it a comment"),
        ("# lab.size.hint()", "size", "28: lab.size.check(...) is shown only as the last line of a cell"),
        ("size = ...", "size = 3", "28: the student's notebook has an answer to size"),
        ("lab.size.check(size)", "lab.size.check(3)", "28: the student's notebook has an answer to size"),
        ("why = ...", 'why = "so it is"', "36: the student's notebook has an answer to why"),
        ('# %% tags=["parameters"]', "# %%", '1: a lab has one cell with # %% tags=["parameters"]; this one has 0'),
        ('# %% tags=["exercises"]', '# %% tags=["exercise"]', "1: no exercise is defined"),
        ("student: str", "pupil: str", '7: the parameters need student: str = "student"'),
        ("count: int = 3", "count = 3", "8: a parameter is written NAME: TYPE = VALUE"),
        ('ci = {"count": 1}', 'ci = {"cuont": 1}', "1: ci names the parameter 'cuont'"),
        ('ci = {"count": 1}', "ci = 3", "13: ci is a dict of plain values"),
        ('hints=("count them",), ', "", "14: size has no hint"),
        (', solution="they were counted"', "", "14: size has no solution"),
        ("words=2", "word=2", "15: TypeError"),
        ('open_lab("03/2"', 'open_lab("03/1"', '20: this opens \'03/1\'; by its file name this lab is "03/2"'),
        ("recorded = lab.record()\nrecorded", "lab.summary()", "39: the last code cell records"),
        ("lab.given(count=count)", "lab.given(count=count", "18: this cell is no Python with its solution"),
        ("size = ...\n", "", None),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line(lab, old, new, said):
    assert old in GOOD
    files = lab(GOOD.replace(old, new))
    if said is None:
        assert read_source(files).exercises
        return
    assert any(mistake.startswith(said) for mistake in mistakes(files)), mistakes(files)


def test_a_cell_that_is_no_python_without_its_solution(lab):
    text = GOOD.replace("size = ...\n", "if True:\n").replace("size = 3", "    size = 3")
    assert any(each.startswith("24: this cell is no Python as the student gets it") for each in mistakes(lab(text)))


def test_exercises_in_a_cell_that_students_see(lab):
    text = GOOD.replace("lab.given(count=count)", "from localai_clusters.exercises import Number")
    assert any("this one is shown" in each for each in mistakes(lab(text)))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("exercise: size", "exercise: sise", "1: 2_tiny.rubric.yaml asks for 'sise', and no exercise is called that"),
        ("answer: why", "answer: worth-it", "1: 2_tiny.rubric.yaml asks for 'worth-it'"),
        ("lab: tiny", "lab: tinny", "1: 2_tiny.rubric.yaml is of chapter 3, lab tinny; here it is tiny"),
        ("kind: text", "kind: texts", "1: 2_tiny.rubric.yaml:8: "),
    ],
)
def test_a_rubric_that_asks_for_what_is_not_there(lab, old, new, said):
    files = lab()
    files.rubric.write_text(RUBRIC.replace(old, new))
    assert mistakes(files)[0].startswith(said)
    files.rubric.unlink()
    assert mistakes(files)[0].startswith("1: there is no rubric 2_tiny.rubric.yaml beside it")


def test_all_mistakes_are_told_at_once(lab):
    text = GOOD.replace("size = ...", "size = 3").replace("why = ...", "why = 'x'")
    assert len(mistakes(lab(text.replace('hints=("count them",), ', "")))) == 3


@pytest.mark.parametrize("text", ["", "x = 1", "# %%", "# %%\nx = (", "# %% [markdown]\n# text", "\0", "# ---\n# a\n"])
def test_a_source_that_is_nearly_empty_is_no_exception_of_ours(lab, text):
    assert mistakes(lab(text))


def test_markers_may_be_indented_and_stand_twice_in_a_cell():
    first = "def f():\n    # BEGIN SOLUTION\n    return 1\n    # END SOLUTION\n    ..."
    text = f"{first}\n# BEGIN SOLUTION\nf()\n# END SOLUTION"
    assert markers.without_solutions(text) == "def f():\n    ..."
    assert markers.with_solutions(text) == "def f():\n    return 1\n    ...\nf()"


# The verbs


def test_course_build_names_mistakes_and_says_what_it_wrote(lab):
    files = lab(GOOD.replace("size = ...", "size = 3"))
    done = CliRunner().invoke(main, ["course", "build", str(files.source)])
    assert (done.exit_code, f"{files.source}:28: the student's notebook has an answer" in done.output) == (1, True)
    assert not files.notebook.exists()
    lab()
    checked = CliRunner().invoke(main, ["course", "build", "--check", "--json", str(files.source)])
    assert checked.exit_code == 1 and not json.loads(checked.output)["holds"] and not files.notebook.exists()
    assert CliRunner().invoke(main, ["course", "build", str(files.source)]).output == (
        "03/2 tiny: wrote 2_tiny.ipynb, 2_tiny.sealed\n"
    )
    again = CliRunner().invoke(main, ["course", "build", "--check", str(files.source)])
    assert (again.exit_code, again.output) == (0, "03/2 tiny: up to date\n")


@pytest.mark.parametrize("files", all_labs(), ids=lambda files: files.name)
def test_what_is_committed_is_what_the_sources_build(files):
    assert building.stale(files) == [], f"type: localai-clusters course build {files.name}"


# A new lab


@pytest.fixture
def root(tmp_path):
    """A course with nothing in it."""
    for name in ROOT_FILES:
        (tmp_path / name).write_text("")
    for name in TREES:
        (tmp_path / name).mkdir()
    (tmp_path / "course" / "07_vllm_distributed_serving.ipynb").write_text("{}")
    return tmp_path


def test_a_new_lab_builds_and_its_rubric_holds(root):
    files = new_lab("7", "my_idea", 'Is it "50%": {yes}?', root=root)
    assert (files.folder.name, files.stem, files.name) == ("07_vllm_distributed_serving", "1_my_idea", "07/1")
    source = read_source(files)
    assert building.stale(files) == [] and source.title == 'Is it "50%": {yes}?'
    rubric = read_rubric(files.rubric)
    assert (rubric.lab, rubric.chapter, rubric.title) == ("my_idea", 7, 'Lab 7.1: Is it "50%": {yes}?')
    asked = {criterion.exercise for criterion in rubric.criteria if criterion.kind == "exercise"}
    assert asked == {"same_words", "weights"} <= set(source.exercises)
    assert new_lab("07", "another", root=root).stem == "2_another"
    assert new_lab("08_more", "first", root=root).name == "08/1"


@pytest.mark.parametrize(
    ("chapter", "name", "said"),
    [("07", "My Idea", "cannot be a lab's name"), ("07", "../x", "cannot be a lab's name"), ("07", "", "cannot be"),
     ("seven", "x", "is no chapter"), ("00", "x", "is no chapter"), ("09", "x", "there is no chapter 09"),
     ("07_/../..", "x", "is no chapter")],
)  # fmt: skip
def test_a_new_lab_that_cannot_be(root, chapter, name, said):
    with pytest.raises(ValueError, match=said):
        new_lab(chapter, name, root=root)
    assert list((root / "labs").iterdir()) == []


def test_a_lab_that_is_there_is_not_written_over(root):
    files = new_lab("07", "my_idea", root=root)
    with pytest.raises(ValueError, match="there is a lab my_idea"):
        new_lab("07", "my_idea", root=root)
    assert [path.name for path in files.folder.glob("*.py")] == ["1_my_idea.py"]


# The students' archive


def names_in(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return [name.partition("/")[2] for name in archive.namelist()]


def test_an_archive_has_no_sources_and_no_rubric_that_holds_answers(root):
    files = new_lab("07", "my_idea", root=root)
    other = new_lab("07", "other", root=root)
    rubric = other.rubric.read_text()
    holds_an_answer = "{id: x, title: x, points: 1, kind: number, answer: weights, expected: 3.0}"
    other.rubric.write_text(f"{rubric}\n  - {holds_an_answer}\n")
    (root / "labs" / "README.md").write_text("for who writes labs")
    (root / "localai_clusters" / "x.py").write_text("pass")
    (root / "localai_clusters" / "__pycache__").mkdir()
    (root / "localai_clusters" / "__pycache__" / "x.py").write_text("pass")
    names = names_in(release(root / "out.zip", root).path)
    folder = f"labs/{files.folder.name}"
    assert [name for name in names if name.startswith("labs")] == [
        f"{folder}/1_my_idea.ipynb", f"{folder}/1_my_idea.rubric.yaml", f"{folder}/1_my_idea.sealed",
        f"{folder}/2_other.ipynb", f"{folder}/2_other.sealed",
    ]  # fmt: skip
    assert [name for name in names if name.startswith("localai_clusters")] == ["localai_clusters/x.py"]
    assert not (root / ".out.zip.new").exists()


def test_what_must_not_be_handed_out_is_refused(root):
    files = new_lab("07", "my_idea", root=root)
    book = json.loads(files.notebook.read_text())
    files.notebook.write_text(json.dumps(book))
    with pytest.raises(ReleaseError, match=r"1_my_idea\.ipynb in .* is not what its source builds; type: .* 07/1"):
        release(root / "out.zip", root)
    building.build(files)
    chapter = root / "course" / "07_vllm_distributed_serving.ipynb"
    chapter.write_text('{"cells": [{"execution_count": 3}]}')
    with pytest.raises(ReleaseError, match="was saved with its outputs"):
        release(root / "out.zip", root)
    assert not (root / "out.zip").exists()


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """(the archive, the folder that it unpacks to), of the course as it is"""
    made = release(tmp_path_factory.mktemp("release") / "labs.zip")
    place = tmp_path_factory.mktemp("student")
    with zipfile.ZipFile(made.path) as archive:
        for entry in archive.infolist():
            Path(archive.extract(entry, place)).chmod(entry.external_attr >> 16)
    return made, place / made.folder


def test_the_same_course_gives_the_same_archive(unpacked, tmp_path):
    assert release(tmp_path / "again.zip").sha256 == unpacked[0].sha256


def test_the_archive_works_like_a_clone(unpacked):
    """Its own library opens every lab, from the sealed file; the set-up script finds all that it needs."""
    _, folder = unpacked
    labs = [files.name for files in all_labs()]
    script = (
        "import localai_clusters as lac; from localai_clusters.lab import course_root\n"
        f"labs = [lac.open_lab(name, student='s1') for name in {labs}]\n"
        "print(course_root()); print([len(lab.outcomes()) for lab in labs])\n"
        "print([lac.ServePlan, lac.preflight] and lac.__file__)"
    )
    env = {"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin", "HOME": str(folder.parent)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, cwd=folder / "labs")
    assert done.returncode == 0, done.stderr
    root, counts, package = done.stdout.splitlines()
    assert Path(root) == folder and Path(package).is_relative_to(folder)
    assert json.loads(counts) == [len(read_source(files).exercises) for files in all_labs()]
    command = ["bash", "setup.sh", "--check", "--variant", "cpu"]
    checked = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert "not up to date; run ./setup.sh" in checked.stdout, checked.stderr
    page = (folder / "README.md").read_text()
    assert all(files.notebook.name in page for files in all_labs())


def test_nothing_in_the_archive_gives_a_solution_away_in_clear(unpacked):
    _, folder = unpacked
    assert not list(folder.glob("labs/*/*.py")) and not (folder / "tests").exists()
    files = [path for path in folder.glob("**/*") if path.is_file() and path.suffix != ".pyc"]
    pages = {path: path.read_text() for path in files}
    for files in all_labs():
        source = read_source(files)
        notebook = sources((folder / files.notebook.relative_to(course_root())).read_text())
        for name, exercise in source.exercises.items():
            for secret in (exercise.solution, *exercise.hints):
                told = [path for path, page in pages.items() if len(secret) > 20 and secret in page]
                assert not told, f"{name}: {secret}"
        shown = set(notebook.splitlines())
        for cell in source.cells:
            if cell.kind == "code" and "exercises" not in cell.tags:
                cut = markers.with_solutions(cell.source).splitlines()
                kept = markers.without_solutions(cell.source).splitlines()
                lines = {line for line in cut if line not in kept}
                answers = {line for line in lines if line.split(" = ")[0].strip() in source.exercises}
                assert not answers & shown, files.name
