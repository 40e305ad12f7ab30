"""The zip that is uploaded to Gradescope: this folder, the library's Python files, a rubric, and the course's key.

    python interop/gradescope/pack.py course/07_vllm_distributed_serving.rubric.yaml --course-key-file key

The same files give the same bytes.
"""

import zipfile
from pathlib import Path

import click

from localai_clusters.grading.rubric_file import RubricError, read_rubric

HERE = Path(__file__).parent
LIBRARY = HERE.parents[1] / "localai_clusters"
EPOCH = (1980, 1, 1, 0, 0, 0)  # a zip knows no earlier time
SCRIPTS = ("setup.sh", "run_autograder")


def contents(rubric: Path, course_key: Path | None) -> dict[str, tuple[bytes, int]]:
    """Name in the zip -> (content, Unix permissions)."""
    found = {name: (HERE.joinpath(name).read_bytes(), 0o755) for name in SCRIPTS}
    found["requirements.txt"] = (HERE.joinpath("requirements.txt").read_bytes(), 0o644)
    found["rubric.yaml"] = (rubric.read_bytes(), 0o644)
    if course_key:
        found["course_key"] = (course_key.read_bytes(), 0o600)
    for path in LIBRARY.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            found[f"localai_clusters/{path.relative_to(LIBRARY).as_posix()}"] = (path.read_bytes(), 0o644)
    return dict(sorted(found.items()))


@click.command(help=__doc__.split("\n\n")[0])
@click.argument("rubric", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--course-key-file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("gradescope.zip"), show_default=True)
def main(rubric: Path, course_key_file: Path | None, output: Path) -> None:
    try:
        read_rubric(rubric)
    except RubricError as error:
        raise click.ClickException(str(error)) from None
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (content, mode) in contents(rubric, course_key_file).items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr, entry.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    click.echo(f"{output}: upload it in Gradescope under Configure Autograder")


if __name__ == "__main__":
    main()
