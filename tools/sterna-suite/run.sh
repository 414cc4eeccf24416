#!/usr/bin/env bash
# Proves and measures Sterna on this machine. Needs nothing but a python3 that has torch 2.11.0+cu130.
#
#   bash run.sh lease                   a card that is there for 15 minutes: the first call, under six minutes
#   bash run.sh lease-2                 the second, after what the first showed was mended
#   bash run.sh                         the quick suite, under ten minutes
#   bash run.sh long-128k               one longer benchmark, at most ten minutes; all results join one report
#   bash run.sh long-128k sterna liger  the same for some systems only
#   bash run.sh list                    everything there is to run
#   bash run.sh --tiny                  everything small, without a GPU too: shows that the suite works
#   bash run.sh --out DIR ...           another folder for the report than ./report
#   bash run.sh --archive FILE ...      where the report is packed to after each step, the summary beside it
#   bash run.sh --seconds N ...         what all steps may take together
#   bash run.sh --host-bytes 128Gi ...  what the host has, where it does not say it (a lease takes 128Gi for granted)
#
# Exit status: 0 everything passed, 1 something is wrong, 2 it could not run. PYTHON names another python3.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
out=report
options=()
words=()
while [[ $# -gt 0 ]]; do
    case $1 in
    --out) out=${2:?--out needs a folder} && shift 2 ;;
    --tiny) options+=(--tiny) && shift ;;
    --host-bytes | --seconds | --archive) options+=("$1" "${2:?"$1" needs a value}") && shift 2 ;;
    -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" && exit 0 ;;
    *) words+=("$1") && shift ;;
    esac
done
mkdir -p "$out"

# A report in any case: one that says why there is none.
give_up() {
    echo "error: ${*#error: }" >&2
    printf '# Sterna: the suite could not run\n\n%s\n' "$*" > "$out/report.md"
    exit 2
}

# libtorch is python's, and so are the CUDA libraries beside it.
libraries=$("$python" - 2>&1 << 'PY'
import glob, os, sys
import torch
if not torch.__version__.startswith("2.11.0"):
    sys.exit(f"python's torch is {torch.__version__}, and these programs are built for 2.11.0")
folder = list(torch.__path__)[0]
nvidia = glob.glob(os.path.join(os.path.dirname(folder), "nvidia", "*", "lib"))
print(":".join([os.path.join(folder, "lib"), *sorted(nvidia)]))
PY
) || give_up "$python has no torch that can be used: ${libraries##*$'\n'}"
chmod +x "$here"/bin/* 2> /dev/null
export LD_LIBRARY_PATH="${libraries##*$'\n'}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
started=$("$here/bin/sterna-suite" --version 2>&1) || give_up "bin/sterna-suite does not start: $started"
if [[ ${words[0]:-} == list ]]; then
    exec "$here/bin/sterna-suite" list
fi

# Python packages that the baselines need and a machine may lack. A wheel is an archive.
site=$out/site
if [[ ! -d $site ]]; then
    mkdir -p "$site"
    for wheel in "$here"/wheels/*.whl; do
        [[ -e $wheel ]] && "$python" -m zipfile -e "$wheel" "$site"
    done
fi
# In front of the machine's own, of which it has nothing that the baselines share: neither torch nor transformers.
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$(cd "$site" && pwd)"

# The sections have limits of their own; this one is for a suite that hangs itself.
timeout --kill-after=3 $((580 - SECONDS)) "$here/bin/sterna-suite" run "${words[@]}" "${options[@]}" --out "$out" \
    --inputs "$here/inputs" --baselines "$here/baselines" --contracts "$here/contracts" --sterna "$here/bin/sterna" \
    --python "$python" 2> "$out/errors.txt"
status=$?
[[ $status -ne 2 || -e $out/report.md ]] || give_up "$(cat "$out/errors.txt")"
cat "$out/errors.txt" >&2
# Last, where the end of an output is all that comes back.
[[ ${words[0]:-} != lease* || ! -e $out/summary.txt ]] || cat "$out/summary.txt"
[[ $status -lt 124 ]] || echo "error: the suite was ended with status $status; $out/report.md has what it found" >&2
exit "$status"
