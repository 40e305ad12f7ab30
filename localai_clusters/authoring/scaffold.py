"""The beginning of a lab: a source and a rubric that run as they are, for an author to change."""

import json
import re
from pathlib import Path

from localai_clusters.authoring.building import build
from localai_clusters.exercises.where import FOLDER, STEM, LabFiles, labs_in
from localai_clusters.lab import course_root

SOURCE = '''\
# %% [markdown]
# # Lab {chapter}.{number}: {title}
#
# What you will find out, in two sentences. Then: predict first, measure after.

# %% tags=["parameters"]
student: str = "student"  # your id; it decides the words in your prompts
model: str = "smollm2-135m"  # built in; a folder or a Hugging Face id works in its place
max_tokens: int = 32  # of each answer

# %% tags=["exercises"]
# No student's notebook has this cell. Each name at the left margin that is an exercise is lab.NAME.
from localai_clusters.exercises import Choice, Number, Text

ci = {{"max_tokens": 8}}  # parameters of a quick run: localai-clusters lab {chapter:02}/{number} --ci

weights = Number(
    "How much memory do the weights on rank 0 take?",
    answer=lambda given: given.memory.ranks[0].weights_measured,
    unit="bytes",
    tolerance=0.05,
    mistakes={{"these are the weights of the whole model": lambda given: 2 * given.memory.ranks[0].weights_measured}},
    hints=("Which matrices are cut, and which does every rank hold whole?", "lac.split_map(plan) shows it."),
    solution="Half of every layer's matrices, and all of the norms: what is not cut is there twice.",
)
same_words = Choice(
    "Will two ranks give the same answer as one?",
    options=("yes, up to rounding", "no, each rank has half of the knowledge"),
    answer="yes, up to rounding",
    why_not={{"no, each rank has half of the knowledge": "The partial sums are added up after each pair of matrices."}},
    hints=("What does the all-reduce do?",),
    solution="The all-reduce adds up the parts, so that every rank goes on with the whole sum.",
)
worth_it = Text("When is it worth it to split this model?", words=10, guide="names memory, and what all-reduces cost")

# %%
import localai_clusters as lac

lab = lac.open_lab("{chapter:02}/{number}", student=student)
plan = lac.ServePlan(model=model, tensor_parallel_size=2, port=0, master_port=0)
lac.preflight(plan)

# %% [markdown]
# ## Predict
# Look at the plan. Will the answers change?

# %%
same_words = ...
# BEGIN SOLUTION
same_words = "yes, up to rounding"
# END SOLUTION
lab.same_words.check(same_words)
# lab.same_words.hint()
# lab.same_words.solution()

# %% [markdown]
# ## Measure

# %%
with lac.serve(plan) as server:
    for prompt in lab.prompts(2):
        print(server.chat(prompt, max_tokens=max_tokens))
    memory = server.memory()
lab.given(plan=plan, memory=memory)
memory

# %% [markdown]
# How many bytes of weights does rank 0 hold? A figure with a unit will do: `"120 MiB"`.

# %%
weights = ...
# BEGIN SOLUTION
weights = memory.ranks[0].weights_predicted
# END SOLUTION
lab.weights.check(weights)
# lab.weights.hint()
# lab.weights.solution()

# %% [markdown]
# When is it worth it to split this model? In your own words.

# %%
worth_it = ...
# BEGIN SOLUTION
worth_it = "When it does not fit one device, for the all-reduces cost more than a small model gains."
# END SOLUTION
lab.worth_it.check(worth_it)

# %%
lab.summary()

# %%
recorded = lab.record(servers=[server])
recorded
'''

RUBRIC = """\
# What a record of this lab is worth. Edit the points and the words; then
#   localai-clusters grade --check-rubric {path}
rubric: 1
lab: {slug}
chapter: {chapter}
title: {quoted}
evidence: cpu # the least that counts: dry-run, cpu or cuda

criteria:
  - id: consistent
    title: The record agrees with itself
    points: 1
    kind: consistent

  - id: split
    title: The model was served on two ranks
    points: 2
    kind: served
    run: {{tensor_parallel_size: 2+}}

  - id: own-prompts
    title: It answered the student's own prompts
    points: 1
    kind: answered
    run: {{tensor_parallel_size: 2+}}
    prompts: 2
    tokens: 4
    own: true

  - id: same-words
    title: What a split changes, predicted
    points: 1
    kind: exercise
    exercise: same_words

  - id: weights
    title: The weights on one rank
    points: 2
    kind: exercise
    exercise: weights
    after_solution: 50% # if the solution was looked up before

  - id: worth-it
    title: When a split is worth it
    points: 2
    kind: text
    answer: worth_it
    words: 10
    guide: names memory, and the cost of the all-reduce
"""


def new_lab(chapter: str, name: str, title: str | None = None, root: Path | None = None) -> LabFiles:
    """Begin the lab ``name`` of ``chapter`` (``07``, or its folder's whole name) in labs/ of the course, and build it.

    Raises ``ValueError`` for a name that is no name of a file, and for one that is taken.
    """
    root = root or course_root()
    folder = _folder(chapter, root)
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,59}", name):
        raise ValueError(f"{name!r} cannot be a lab's name; use small letters, digits and _: my_idea")
    labs = labs_in(folder) if folder.is_dir() else []
    if any(lab.slug == name for lab in labs):
        raise ValueError(f"there is a lab {name} in {folder} already")
    taken = [int(found[1]) for path in folder.glob("*_*") if (found := STEM.fullmatch(path.name.split(".")[0]))]
    number, of = 1 + max(taken, default=0), int(folder.name.split("_")[0])
    files = LabFiles(folder, f"{number}_{name}", of)
    title = " ".join((title or _in_words(name)).split())
    words = {"chapter": of, "number": number, "slug": name, "title": title}
    words["quoted"] = json.dumps(f"Lab {of}.{number}: {title}", ensure_ascii=False)  # YAML reads JSON's strings
    folder.mkdir(parents=True, exist_ok=True)
    files.source.write_text(SOURCE.format(**words), encoding="utf-8")
    files.rubric.write_text(RUBRIC.format(**words, path=files.rubric.relative_to(root)), encoding="utf-8")
    build(files)
    return files


def _folder(chapter: str, root: Path) -> Path:
    labs = root / "labs"
    number, _, rest = chapter.partition("_")
    if not (number.isascii() and number.isdigit() and 0 < int(number) < 100 and "/" not in rest):
        raise ValueError(f"{chapter!r} is no chapter; write its number, 07, or the name of its folder, 07_my_chapter")
    if rest and FOLDER.fullmatch(chapter):
        return labs / chapter
    for above in (labs, root / "course"):
        for path in sorted(above.glob(f"{int(number):02}_*")):
            return labs / path.name.split(".")[0]
    raise ValueError(f"there is no chapter {number}; give its folder a name too: {number}_my_chapter")


def _in_words(name: str) -> str:
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]
