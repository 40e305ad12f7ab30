"""exercises/: what is said of an answer, hints, solutions, and a lab opened from its source or its sealed file."""

import json
import math
from pathlib import Path

import pytest

import localai_clusters as lac
from localai_clusters import checkpoint
from localai_clusters.exercises import Check, Choice, Number, Several, Text, open_lab, units
from localai_clusters.exercises.bound import Bound
from localai_clusters.exercises.exercise import Given
from localai_clusters.exercises.loading import ExercisesError
from localai_clusters.exercises.opened import NoSuchExercise
from localai_clusters.exercises.sealed import Cell, Sealed, SealedError, seal, unseal
from localai_clusters.exercises.where import NoSuchLab, find_lab
from localai_clusters.observed import Failure
from localai_clusters.plan import ServePlan

SPLIT = ServePlan(tensor_parallel_size=4)


def bound(exercise, **given) -> Bound:
    return Bound("it", exercise, Given(**given))


def said(exercise, value, **given) -> tuple[str, str]:
    verdict = bound(exercise, **given).check(value)
    return verdict.status, verdict.sentence


class Awkward:
    """Raises whatever is asked of it."""

    def __getattribute__(self, name):
        raise RuntimeError("never")

    def __repr__(self):
        raise RuntimeError("never")

    __str__ = __bool__ = __eq__ = __float__ = __len__ = __iter__ = __hash__ = __repr__


LOOP: list = []
LOOP.append(LOOP)
KINDS = [
    Number("?", 12, unit="bytes"),
    Choice("?", ("a way", "no way"), "a way"),
    Several("?", ("x", "y", "z"), {"x", "y"}),
    Text("?", words=2),
    Check("?", lambda value: None if value.fine else "not fine"),
    Check("?", lambda value: None, kind=ServePlan),
]


# Not tried, and values of any type


@pytest.mark.parametrize("exercise", KINDS)
@pytest.mark.parametrize("value", [..., None, "", "  ", "...", "…", [...], (), set(), {...}])
def test_dots_and_nothing_are_not_tried_and_not_wrong(exercise, value):
    it = bound(exercise)
    assert it.check(value).status == "not-tried"
    assert (it.attempts, it.answer) == (0, None)


@pytest.mark.parametrize("exercise", KINDS)
def test_no_value_of_any_type_is_an_exception_and_the_verdict_shows_itself(exercise):
    values = [0, -1, True, math.nan, math.inf, 10**400, 1j, "x" * 100_000, "\0", b"12", [1], [[]], {1: 2}, {"a"}]
    for value in [*values, object(), len, int, LOOP, Awkward(), [Awkward()], ServePlan(), range(3), "12 \ud800"]:
        verdict = bound(exercise).check(value)
        assert verdict.status in ("wrong", "right", "by-hand", "not-tried")
        assert str(verdict) and verdict._repr_mimebundle_()["text/html"]


@pytest.mark.parametrize("answer", [lambda g: g.server.figure, lambda g: 1 / 0, lambda g: None, lambda g: math.nan])
def test_an_answer_that_cannot_be_worked_out_says_to_run_the_cells_above(answer):
    status, sentence = said(Number("?", answer), 3)
    assert status == "not-tried" and "Run the cells above it first" in sentence


def test_what_was_not_handed_over_is_named():
    assert "(server is not known yet)" in said(Number("?", lambda given: given.server.figure), 3)[1]


# Numbers


@pytest.mark.parametrize(
    "value",
    [11520, 11520.0, "11520", "11,520", "11_520 bytes", "11520 B", "11.25 KiB", "11.25kib", "0.09216 Mbit", 
     "92160 bits", "11.5 kB", "~11.3 KiB", "1.152e4"],
)  # fmt: skip
def test_a_figure_is_right_in_any_unit_of_its_kind_and_as_exact_as_it_was_typed(value):
    assert said(Number("?", 11520, unit="bytes"), value)[0] == "right"


@pytest.mark.parametrize(
    "value", [11500, 11521, "11500 bytes", "12 kB", "11.4 KiB", 11.25, "11520 tokens", "bytes", "11520 s"]
)
def test_a_figure_that_is_not_it_is_wrong(value):
    assert said(Number("?", 11520, unit="bytes"), value)[0] == "wrong"


@pytest.mark.parametrize(
    ("unit", "value"),
    [("s", "120 ms"), ("s", 0.12), ("ms", "0.12 s"), ("tokens", "120 tokens"), ("tokens/s", "120 tokens per second"),
     ("bytes per token", "120 bytes"), ("bytes per token", "120 B/token"), ("%", "120%"), ("", "120"), ("", "12,000 %"),
     ("block", "120 blocks"), ("MB/s", "0.12 GB/s")],
)  # fmt: skip
def test_units_are_read_as_people_type_them(unit, value):
    expected = {"s": 0.12}.get(unit, 120)
    assert said(Number("?", expected, unit=unit), value)[0] == "right"


def test_tolerances():
    assert said(Number("?", 100, tolerance=0.05), 104.9)[0] == "right"
    assert said(Number("?", 100, tolerance=0.05), 105.1)[0] == "wrong"
    assert said(Number("?", 0, absolute=2), -2)[0] == "right"
    assert said(Number("?", 0.1 + 0.2), 0.3)[0] == "right"


@pytest.mark.parametrize(
    ("value", "word"),
    [(11520 * 1.024, "1 KiB is 1,024"), (11520 / 1.024**2, "1 KiB is 1,024"), (11.25, "unit is not"),
     (11520e6, "unit is not"), (5760, "come in pairs"), (23040, "come in pairs"), (2880, "of one rank"),
     (46080, "of one rank"), (92160, "bits or bytes"), (-11520, "sign"), (7, "much too small"), (10900, "too small"),
     (10**9, "much too large"), (0, "too small"), ("11520 tokens", "asked for in bytes"),
     (True, "a figure is asked for")],
)  # fmt: skip
def test_what_is_wrong_is_said_without_the_figure(value, word):
    status, sentence = said(Number("?", 11520, unit="bytes"), value, plan=SPLIT)
    assert status == "wrong" and word in sentence
    assert "11.25 K" not in sentence and "11,520 bytes" not in sentence.removeprefix("-11,520 bytes")


def test_an_anticipated_mistake_has_its_own_words_and_one_that_cannot_be_worked_out_is_passed_over():
    mistakes = {"nothing": lambda given: given.no.such, "you counted keys only": lambda given: given.answer / 2}
    exercise = Number("?", lambda given: given.answer, unit="bytes", mistakes=mistakes)
    assert said(exercise, 5760, answer=11520) == ("wrong", "5,760 bytes is not it. You counted keys only.")


def test_numpys_figures_are_figures():
    numpy = pytest.importorskip("numpy")
    it = bound(Number("?", 12, unit="bytes"))
    assert it.check(numpy.int64(12)).status == "right" and type(it.answer) is int
    assert it.check(numpy.array([1, 2])).status == "wrong"


def test_what_is_recorded_is_in_the_exercises_unit():
    it = bound(Number("?", 11520, unit="bytes"))
    it.check("11.25 KiB")
    assert it.answer == 11520 and it.outcome().status == "right"


# Choices


CHOICE = Choice("?", ("by column", "by row", "not at all"), "by row", why_not={"by column": "Its width is whole."})


@pytest.mark.parametrize("value", ["by row", " By  Row ", "b", "b)", "(B)"])
def test_an_option_is_its_text_or_its_letter(value):
    it = bound(CHOICE)
    assert it.check(value).status == "right" and it.answer == "by row"


def test_a_wrong_option_says_why_and_an_unknown_one_is_no_attempt():
    it = bound(CHOICE)
    assert it.check("by column").sentence == "'by column' is not it. Its width is whole."
    assert "is none of the options: 'by column', 'by row', 'not at all'" in it.check("diagonally").sentence
    assert it.attempts == 1


def test_a_choice_may_depend_on_the_run_and_have_several_right_answers():
    exercise = Choice("?", ("TP=1", "TP=2"), lambda given: given.best)
    assert said(exercise, "TP=2", best="TP=2")[0] == "right"
    assert said(exercise, "TP=2", best={"TP=1", "TP=2"})[0] == "right"
    assert said(exercise, "TP=2", best="TP=1")[0] == "wrong"


@pytest.mark.parametrize(("options", "answer"), [(("a", "b"), "c"), (("a",), "a"), (("a", "A"), "a"), ((), "a")])
def test_a_choice_without_sense_is_the_authors_error(options, answer):
    with pytest.raises(ValueError, match="option"):
        Choice("?", options, answer)


SEVERAL = Several("?", ("q", "k", "norm", "o"), {"q", "k", "o"}, why_not={"norm": "Every rank has it."})


@pytest.mark.parametrize("value", [{"q", "k", "o"}, ["o", "k", "q"], ("a", "b", "d"), "q, k, o", frozenset("qko")])
def test_several_are_a_set_in_any_order(value):
    it = bound(SEVERAL)
    assert it.check(value).status == "right" and it.answer == "q, k, o"


def test_several_that_are_wrong_say_how_without_naming_what_is_missing():
    assert said(SEVERAL, {"q", "norm"}) == (
        "wrong", "1 of those you chose does not belong. Every rank has it. Not all of them are there."
    )  # fmt: skip
    assert said(SEVERAL, {"q", "k"}) == ("wrong", "Not all of them are there.")
    assert said(SEVERAL, {"q", "x"})[1].startswith("'x' is none of the options")
    assert said(SEVERAL, 3)[1] == "3 is a int; a set of options is asked for."


# Texts and checks


def test_a_text_waits_for_a_person_and_one_that_is_too_short_says_so():
    it = bound(Text("?", words=3))
    assert it.check("too short").sentence == "2 words so far; at least 3 are asked for."
    assert it.check("this is enough").status == "by-hand" and it.answer == "this is enough"
    assert it.check("x " * 3000).status == "wrong"


def test_a_check_says_what_its_test_says():
    def even(value, given):
        return None if value % given.by == 0 else f"{value} does not divide by {given.by}"

    assert said(Check("?", even), 4, by=2)[0] == "right"
    assert said(Check("?", even), 3, by=2) == ("wrong", "3 does not divide by 2")
    assert said(Check("?", even), "x", by=2)[1].startswith("It cannot be used as it is: TypeError")
    assert said(Check("?", even), 3)[0] == "not-tried"


def test_a_plan_that_must_pass_preflight():
    from localai_clusters.preflight import preflight

    def passes(plan):
        report = preflight(plan)
        return None if report.ok else str(report.verdicts[0].message)

    ports = {"port": 0, "master_port": 0}
    exercise = Check("?", passes, kind=ServePlan)
    assert said(exercise, ServePlan(**ports))[0] == "right"
    assert said(exercise, ServePlan(tensor_parallel_size=5, **ports))[0] == "wrong"
    assert said(exercise, "tp=2")[1] == "a ServePlan is asked for; tp=2 is of the type str."


@pytest.mark.parametrize("value", ["\ud800" * 5, "\0\x1b[31m", 10**30, -1e300, "x" * 100_000, "1e300", LOOP])
def test_whatever_was_typed_can_be_recorded(value, folder, tmp_path):
    lab = open_lab("03/2", student="s1")
    lab.given(count=4)
    for exercise in (lab.size, lab.way):
        exercise.check(value)
    failure = Failure("x", "refused by preflight", "heads", "9 heads", 0.1, ServePlan())
    recorded = lab.record(failures=[failure], folder=tmp_path, constraints=[..., "...", "", "mine"])
    found = checkpoint.read(recorded.path)
    assert [each.sentence for each in found.constraints if each.source == "student"] == ["mine"]
    assert set(found.answers) == {"size", "way"} and {each.status for each in found.exercises} == {"wrong"}


# Hints, solutions, what is counted


def test_hints_come_one_by_one_and_are_counted_once():
    it = bound(Number("?", 1, hints=("first", "second")))
    assert "first" in str(it.hint()) and "second" not in str(bound(it.exercise).hint())
    assert "2. second" in str(it.hint()) and "That was the last" in str(it.hint())
    assert it.hints == 2
    assert "none" in str(bound(Number("?", 1)).hint())


def test_the_solution_has_the_answer_of_this_run_and_is_counted_unless_it_was_found():
    exercise = Number("?", lambda given: given.n * 2, unit="bytes", solution="twice\nn")
    it = bound(exercise, n=4)
    assert str(it.solution()) == "= Solution: it\n  Answer: 8 bytes\n  twice\n  n"
    assert it.solution_shown
    found = bound(exercise, n=4)
    found.check(8)
    found.solution()
    assert not found.solution_shown
    assert "known when the cells above" in str(bound(exercise).solution())


def test_the_same_answer_again_is_no_new_attempt():
    it = bound(Number("?", 3))
    for value in (1, 1, 2, "2", 3, 3):
        it.check(value)
    assert (it.attempts, it.status) == (3, "right")
    it.check(...)
    assert (it.outcome().attempts, it.outcome().status, it.outcome().answer) == (3, "not-tried", None)


def test_what_is_shown_is_escaped():
    it = bound(Choice("<b>?</b>", ("<i>", "b"), "b", why_not={"<i>": "<script>"}, hints=("<u>",), solution="<s>"))
    notes = (it.hint(), it.solution(), it)
    shown = it.check("<i>")._repr_mimebundle_()["text/html"] + "".join(note._repr_html_() for note in notes)
    assert not any(tag in shown for tag in ("<b>?", "<i>", "<script>", "<u>", "<s>"))


# A lab


SOURCE = '''\
# %% [markdown]
# # Lab 3.2: Tiny

# %% tags=["exercises"]
from localai_clusters.exercises import Choice, Number
size = Number("How many?", lambda given: given.count, unit="ranks", hints=("count",), solution="counted")
way = Choice("Which?", ("one", "two"), "two")
_helper = Number("not one of them", 1)
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    place = tmp_path / "03_tiny_chapter"
    place.mkdir()
    (place / "2_tiny.py").write_text(SOURCE)
    monkeypatch.chdir(place)
    return place


def write_sealed(folder: Path, **changed) -> Path:
    values = {"chapter": 3, "number": 2, "lab": "tiny", "title": "Tiny", "source_sha256": "0" * 64, "ci": {}}
    path = folder / "2_tiny.sealed"
    path.write_text(seal(Sealed(**{**values, "cells": (Cell(5, "\n".join(SOURCE.splitlines()[4:])),), **changed})))
    return path


@pytest.mark.parametrize("name", ["03/2", "3/2", "3.2", "03/tiny", "tiny", "2_tiny", "2_tiny.py", "./2_tiny.py"])
def test_a_lab_is_opened_by_any_of_its_names(folder, name):
    lab = open_lab(name, student="s1")
    assert (lab.chapter, lab.number, lab.slug, lab.title) == (3, 2, "tiny", "Tiny")
    assert [outcome.id for outcome in lab.outcomes()] == ["size", "way"]


def test_what_a_lab_collects(folder):
    lab = lac.open_lab("03/2", student="s1")
    assert lab.size.check(2).status == "not-tried"
    lab.given(count=4)
    assert lab.size.check("4 ranks").status == "right"
    lab.way.check("one")
    assert lab.answers == {"size": 4, "way": "one"}
    assert lab.summary().sentence() == "2 exercises: 1 right, 1 not right yet"
    assert "size" in str(lab.summary()) and "<table>" in lab.summary()._repr_html_()
    assert lab.prompts(2) == lac.prompts_for("s1", "tiny", 2)
    lab.given(count=...)
    assert lab.size.check(5).status == "not-tried"


def test_an_exercise_that_is_not_there_names_the_nearest_and_what_python_asks_for_is_no_exercise(folder):
    lab = open_lab("03/2")
    with pytest.raises(NoSuchExercise, match=r"lab 3\.2 has no exercise 'sise'; did you mean lab\.size\?"):
        lab.sise  # noqa: B018
    assert not hasattr(lab, "_ipython_canary_method_should_not_exist_") and "size" in dir(lab)


def test_a_lab_that_is_not_there_lists_those_that_are(folder):
    with pytest.raises(NoSuchLab, match=r"there is no lab 'tinny'; did you mean tiny\?; there is: 03/2 \(tiny\)"):
        open_lab("tinny")


@pytest.mark.parametrize("name", ["", "03", "03/", "/2", "03/9", "²/2", "a\0b", "../2", "03/2/1", "x.py", "03_tiny"])
def test_odd_names_are_one_message(folder, name):
    with pytest.raises(NoSuchLab, match="there is no lab"):
        find_lab(name)


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [("size = Number('?')", 8, "TypeError"), ("size = (", 8, "'\\(' was never closed"),
     ("record = way", 8, "no exercise can be called"),
     ("Choice('?', ('a', 'b'), 'c')", 8, "'c' is not one of the options")],
)  # fmt: skip
def test_an_authors_mistake_is_named_with_its_line(folder, text, line, sentence):
    (folder / "2_tiny.py").write_text(SOURCE.replace('_helper = Number("not one of them", 1)', text))
    with pytest.raises(ExercisesError, match=f"line {line}: .*{sentence}"):
        open_lab("03/2")


# The sealed file


def test_a_student_has_no_source_and_opens_the_same_lab(folder):
    write_sealed(folder)
    (folder / "2_tiny.py").unlink()
    lab = open_lab("03/2")
    assert lab.way.check("two").status == "right" and lab.title == "Tiny"


def test_a_copied_lab_opens_in_a_folder_of_any_name(folder, tmp_path, monkeypatch):
    elsewhere = tmp_path / "my homework"
    elsewhere.mkdir()
    write_sealed(folder).rename(elsewhere / "2_tiny.sealed")
    monkeypatch.chdir(elsewhere)
    assert open_lab("03/2").slug == "tiny"


def test_sealed_exercises_are_not_in_clear_and_come_back_as_they_were(folder):
    path = write_sealed(folder, ci={"n": 1})
    assert "How many" not in path.read_text() and "Choice" not in path.read_text()
    assert unseal(path).ci == {"n": 1} and unseal(path).cells[0].line == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda page: page["packed"].__setitem__(0, "A" + page["packed"][0][1:]), "was changed|cannot be unpacked"),
        (lambda page: page["packed"].pop(), "was changed|cannot be unpacked"),
        (lambda page: page.__setitem__("sha256", "0" * 64), "was changed"),
        (lambda page: page.__setitem__("version", 2), "is of version 2 and this library reads 1"),
        (lambda page: page.__setitem__("format", "x"), "is not a file of sealed exercises"),
        (lambda page: page.pop("packed"), "cannot be unpacked"),
        (lambda page: page.__setitem__("packed", 3), "cannot be unpacked"),
        (lambda page: page.__setitem__("lab", "another"), "is of lab 03/2 \\(another\\), and was given another name"),
    ],
)
def test_a_sealed_file_that_was_changed_is_one_clear_error(folder, change, message):
    path = write_sealed(folder)
    page = json.loads(path.read_text())
    change(page)
    path.write_text(json.dumps(page))
    with pytest.raises(SealedError, match=message):
        open_lab(str(path))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"3"])
def test_what_is_no_sealed_file_is_one_clear_error(folder, content):
    path = folder / "2_tiny.sealed"
    path.write_bytes(content)
    with pytest.raises(SealedError, match=r"is not a file of sealed exercises; get 2_tiny\.sealed anew"):
        open_lab(str(path))


def test_without_source_and_sealed_file_it_says_what_to_get(folder):
    (folder / "2_tiny.sealed").mkdir()
    (folder / "2_tiny.py").unlink()
    with pytest.raises(SealedError, match="get it from the course's archive"):
        open_lab("03/2")


def test_a_hint_in_the_same_cell_does_not_hide_the_verdict():
    """Jupyter shows the last line of a cell alone."""
    it = bound(Number("?", 3, unit="ranks", hints=("count them",), solution="all of them"))
    it.check(5)
    for help_ in (it.hint(), it.solution()):
        assert "too large" in str(help_) and "too large" in help_._repr_mimebundle_()["text/html"]
    assert "Answer: 3 ranks" in str(it.solution())
    assert "Right" in str(it.check(3))


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [(1, "ranks", "1 rank"), (1, "bytes", "1 bytes"), (2, "ranks", "2 ranks"), (1, "tokens/s", "1 tokens/s")],
)
def test_one_is_singular(value, unit, said):
    assert units.shown(value, unit) == said
