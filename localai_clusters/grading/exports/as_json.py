"""A gradebook as JSON, written as it is read: the memory it takes does not grow with the class."""

import json
from typing import TextIO

from localai_clusters.grading.folder import Gradebook


def write_json(file: TextIO, book: Gradebook) -> None:
    """One object: ``rubrics`` (points possible by lab) and ``results``, one per file on a line of its own."""
    possible = {lab: rubric.possible for lab, rubric in sorted(book.rubrics.items())}
    file.write(f'{{\n"rubrics": {json.dumps(possible)},\n"files_left_alone": {book.others},\n"results": [')
    for number, plain in enumerate(book.plain()):
        file.write((",\n" if number else "\n") + json.dumps(plain))
    file.write("\n]\n}\n")
