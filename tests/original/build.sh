#!/usr/bin/env bash
# Builds ./.venv-original: Python 3.11 with the notebook's mxnet and gluonnlp, pinned in
# requirements-original.txt of the repository. Needs python3.11 with venv and its headers,
# gcc, and a package index. Run again at any time: a finished environment is left as it is, and a
# changed requirements file builds a new one.
set -euo pipefail

requirements="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/requirements-original.txt"
venv="$PWD/.venv-original"
python="${PYTHON:-python3.11}"

# The copy of the pins is written last, so it is the proof that the build before it was complete.
if cmp -s "$requirements" "$venv/requirements-original.txt"; then
    echo "$venv is up to date"
    exit 0
fi
rm -rf "$venv"
"$python" -m venv "$venv"
pins="$(mktemp)"
trap 'rm -f "$pins"' EXIT

# gluonnlp has no wheel. Its setup.py cythonizes against the numpy, cython and setuptools (< 70)
# of this environment, so they come first and the build gets no isolated environment of its own.
grep -v '^gluonnlp==' "$requirements" > "$pins"
"$venv/bin/python" -m pip install --quiet -r "$pins"
grep '^gluonnlp==' "$requirements" > "$pins"
"$venv/bin/python" -m pip install --quiet --no-build-isolation -c "$requirements" -r "$pins"

"$venv/bin/python" -c 'import gluonnlp, mxnet; gluonnlp.data.BERTSPTokenizer'
cp "$requirements" "$venv/requirements-original.txt"
echo "built $venv"
