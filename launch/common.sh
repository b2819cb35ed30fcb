# shellcheck shell=bash
# What the scripts beside this file share: options, quoting, dry runs. They source it, name their
# options in OPTIONS (option -> default; the default "no" makes a switch), define usage and call
# parse "$@", which fills OPTIONS, WORDS (arguments that are no options), ENVIRONMENT (NAME=VALUE of
# each --env=) and MAIN (all after --).
#
# Options of gcloud, xpk, kubectl, sbatch and srun were held against their documentation on
# 2026-11-26.

fail() {
  echo "error: $*" >&2
  exit 2
}

# First of all: the 3.2 of macOS has no declare -A.
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) ||
  fail "this is bash $BASH_VERSION: 4.4 or newer is needed; install one and put it first in PATH"

declare -A OPTIONS=([dry-run]=no)
WORDS=()
ENVIRONMENT=()
MAIN=()
# What jaxkd ends with where the same command may do better: peers late or gone, a hub not reached.
AGAIN=75
# The checkout's own environment, which the README's first command makes, before any other.
_own=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin/python
if [[ -z ${PYTHON:-} ]]; then
  PYTHON=python
  [[ ! -x $_own ]] || PYTHON=$_own
fi

note() { echo "note: $*" >&2; }

parse() {
  local name
  while (($#)); do
    case $1 in
      --help | -h)
        usage
        exit 0
        ;;
      --)
        MAIN=("${@:2}")
        return
        ;;
      -*)
        name=${1%%=*}
        name=${name#--}
        # Compared as text: an unknown name must not reach a subscript, where bash would expand it.
        [[ " ${!OPTIONS[*]} " == *" $name "* ]] ||
          fail "${1%%=*}: unknown option; choose from $(choices), and put what is for jaxkd.main after --"
        if [[ ${OPTIONS[$name]} == no || ${OPTIONS[$name]} == yes ]]; then
          [[ $1 == "--$name" ]] || fail "$1: --$name takes no value"
          OPTIONS[$name]=yes
        else
          [[ $1 == --*=?* ]] || fail "$1: --$name needs a value, as in --$name=VALUE"
          OPTIONS[$name]=${1#*=}
          [[ $name != env ]] || add_environment "${1#*=}"
        fi
        ;;
      *) WORDS+=("$1") ;;
    esac
    shift
  done
}

# add_environment NAME[=VALUE]: without a value, the one that it has here
add_environment() {
  local name=${1%%=*}
  [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || fail "--env=$1: it must be NAME=VALUE, or NAME for its value here"
  if [[ $1 == *=* ]]; then
    ENVIRONMENT+=("$1")
  else
    [[ -n ${!name-} ]] || fail "--env=$1: $name is not set here: give --env=$name=VALUE"
    ENVIRONMENT+=("$name=${!name}")
  fi
}

choices() {
  local name
  for name in "${!OPTIONS[@]}"; do
    [[ ${OPTIONS[$name]} == no || ${OPTIONS[$name]} == yes ]] && echo "--$name" || echo "--$name="
  done | sort | paste -sd ' ' -
}

# require OPTION EXAMPLE
require() {
  [[ -n ${OPTIONS[$1]} ]] || fail "--$1= is missing, as in --$1=$2"
}

# whole NAME VALUE: a whole number from 1 up
whole() {
  [[ $2 =~ ^[1-9][0-9]{0,5}$ ]] || fail "$1 is '$2': it must be a whole number, 1 or more"
}

# whole_or_none NAME VALUE: a whole number from 0 up
whole_or_none() {
  [[ $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] || fail "$1 is '$2': it must be a whole number, 0 or more"
}

# resource_name NAME WHAT: the names that Google Cloud takes
resource_name() {
  [[ $1 =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    fail "$2 is '$1': it must begin with a letter and have small letters, digits and hyphens, at most 40"
}

require_main() {
  ((${#MAIN[@]})) || fail "nothing to run: end the line with -- --config=configs/VARIANT.py"
}

# Arguments as one line that any POSIX shell reads back as the same arguments.
quote() {
  local word escaped="'\\''" line=()
  for word; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word="'${word//\'/"$escaped"}'"
    line+=("$word")
  done
  echo "${line[*]}"
}

# Runs a command, or prints it in a dry run.
run() {
  if [[ ${OPTIONS[dry-run]} == yes ]]; then quote "$@"; else "$@"; fi
}

# Which commit leaves this machine: fixed at the start, so that a later restart has the same code.
pin_commit() {
  COMMIT=HEAD
  [[ ${OPTIONS[dry-run]} == no ]] || return 0
  COMMIT=$(git rev-parse HEAD 2>/dev/null) ||
    fail "what is sent is a git commit: run this in a clone of the repository"
  git diff --quiet HEAD || note "uncommitted changes are not sent"
}

# may_pass STATUS: whether the same command may do better. 134: JAX has aborted a process since
# another one is gone.
may_pass() { [[ $1 == "$AGAIN" || $1 == 134 ]]; }

# archive NAME: the commit as build/NAME.tar.gz
archive() {
  run mkdir -p build &&
    run git archive --output="build/$1.tar.gz" "$COMMIT"
}

# A worker's own disk goes with the worker.
want_shared_workdir() {
  [[ " ${MAIN[*]}" == *" --workdir="* ]] ||
    note "without --workdir=DIR on storage that all workers share, a run cannot resume elsewhere"
}

# can_run: that the interpreter is there and knows jaxkd; imports nothing heavy
can_run() {
  command -v "$PYTHON" >/dev/null ||
    fail "$PYTHON: no such command; activate the environment or set PYTHON=.venv/bin/python"
  "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("jaxkd") is None)' ||
    fail "$PYTHON has no jaxkd: pip install -e '.[hf]' in it, or set PYTHON=.venv/bin/python"
}
