#!/bin/sh
# Whether a TensorRT engine gives on this device the logits that the export measured for the golden
# images. Needs trtexec, coreutils and awk. Kept patches are not compared, for an engine gives logits
# alone: `gft-edge verify` compares them.
#
# What it runs, here in golden/, with N from 0 on. Which lines it takes it finds in `trtexec --help`.
#
# TensorRT 10.x
#   trtexec --onnx=../@MODEL@ --saveEngine=model.engine --noTF32 --skipInference --stronglyTyped
#   trtexec --loadEngine=model.engine --loadInputs=images:images_N.bin --exportOutput=outputs_N.json --iterations=1 --warmUp=0 --duration=0
#
# TensorRT 11.x: networks are strongly typed anyway, and inputs stay on the host unless told otherwise
#   trtexec --onnx=../@MODEL@ --saveEngine=model.engine --noTF32 --skipInference
#   trtexec --loadEngine=model.engine --loadInputs=images:images_N.bin --exportOutput=outputs_N.json --iterations=1 --warmUp=0 --duration=0 --noCudaGraph --includeDataTransfers
#
# Where the bundle's settings ask for version-compatible engines, all four lines end with
# --versionCompatible: such an engine carries code of its own, which trtexec runs when told to.
#
# --noTF32: the scores that rank the patches are computed in FP32, which TF32 would round to 11 bits.

set -u
LC_ALL=C
export LC_ALL

# Of this bundle.
@FACTS@

usage() {
    cat <<'END'
usage: golden/check.sh [ENGINE]
  ENGINE    an engine built on this device by the line at the head of this script; without it one is
            built into a temporary folder (in $TMPDIR, else /tmp), which takes minutes
  $TRTEXEC  the trtexec to run, where it is not on PATH
exit code: 0 the outputs agree; 1 they do not, or something failed; 2 wrong use, or no trtexec
END
}

refuse() { # MESSAGE [EXIT CODE]
    printf 'check.sh: %s\n' "$1" >&2
    exit "${2-1}"
}

absolute() { # PATH
    case $1 in
        /*) printf '%s\n' "$1" ;;
        *) printf '%s\n' "$PWD/$1" ;;
    esac
}

run() { # COMMAND [ARGUMENT...]: print it, run it, and on failure show why
    line=+
    for word; do
        case $word in
            *[!A-Za-z0-9_./:=,-]*) word="'$word'" ;;
        esac
        line="$line $word"
    done
    printf '%s\n' "$line"
    "$@" >"$work/log" 2>&1
    status=$?
    [ "$status" -eq 0 ] && return
    # On a flag it does not know trtexec prints all its help after the error.
    awk '/\[E\]/' "$work/log" >"$work/errors"
    [ -s "$work/errors" ] || mv "$work/log" "$work/errors"
    tail -n 15 "$work/errors" >&2
    refuse "trtexec failed with exit code $status; the end of its log stands above"
}

known() { # FLAG: itself, where it has an effect
    awk -v flag="$1" '$1 == flag && !/\[Deprecated\]/ { print flag; exit }' "$work/help"
}

whole() { # LINES OF sha256sum
    printf '%s\n' "$1" | sha256sum -c >"$work/log" 2>&1 && return
    damaged=$(awk -F ': FAILED' 'NF > 1 { printf "%s%s", comma, $1; comma = ", " }' "$work/log")
    refuse "not as exported (sha256 differs): ${damaged:-files}; copy the bundle again"
}

logits() { # FILE.json: its values one a line, wherever its lines break
    awk '
        { text = text $0 " " }
        END {
            if (!match(text, /"name"[ \t\r]*:[ \t\r]*"logits"/)) exit
            text = substr(text, RSTART + RLENGTH)
            if (!match(text, /"values"[ \t\r]*:[ \t\r]*\[/)) exit
            text = substr(text, RSTART + RLENGTH)
            text = substr(text, 1, index(text, "]") - 1)
            count = split(text, values, /[ \t\r,]+/)
            for (n = 1; n <= count; n++) if (values[n] != "") print values[n]
        }' "$1"
}

case ${1-} in
    -h | --help)
        usage
        exit 0
        ;;
    -*)
        usage >&2
        refuse "no such option: $1" 2
        ;;
esac
if [ "$#" -gt 1 ]; then
    usage >&2
    refuse "$# arguments: give one engine, or none" 2
fi
engine=
if [ "$#" -eq 1 ]; then
    [ -f "$1" ] || refuse "no such engine: $1; without an argument one is built" 2
    engine=$(absolute "$1")
fi

if [ -n "${TRTEXEC-}" ]; then
    trtexec=$(command -v "$TRTEXEC") || trtexec=$TRTEXEC
    missing="TRTEXEC is $TRTEXEC, which is no program: give the path of trtexec"
else
    trtexec=$(command -v trtexec) || trtexec=/usr/src/tensorrt/bin/trtexec
    missing="no trtexec on PATH and none at /usr/src/tensorrt/bin/trtexec: it comes with TensorRT (on \
Jetson: sudo apt install tensorrt, or libnvinfer-bin); if it lies elsewhere: export PATH=FOLDER:\$PATH"
fi
trtexec=$(absolute "$trtexec")
if [ ! -f "$trtexec" ] || [ ! -x "$trtexec" ]; then
    refuse "$missing" 2
fi

here=$(dirname -- "$(readlink -f -- "$0")")
cd -- "$here" || refuse "cannot enter $here"
work=$(mktemp -d "${TMPDIR:-/tmp}/gft-edge-check.XXXXXX") ||
    refuse "no temporary folder in ${TMPDIR:-/tmp}: set TMPDIR to one that can be written"
trap 'rm -rf -- "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' HUP TERM

whole "$sums"
run "$trtexec" --help
mv "$work/log" "$work/help"
typed=$(known --stronglyTyped)
no_graph=$(known --noCudaGraph)
transfers=$(known --includeDataTransfers)
[ -n "$typed$transfers" ] || refuse "$trtexec is older than TensorRT 10: take 10.3 or newer" 2

if [ -z "$engine" ]; then
    whole "$model_sum"
    engine=$work/model.engine
    echo "building an engine, which takes minutes"
    run "$trtexec" --onnx="$model" --saveEngine="$engine" --noTF32 --skipInference ${typed:+"$typed"} \
        ${version_compatible:+"$version_compatible"}
    [ -s "$engine" ] || refuse "trtexec wrote no engine: is there room in ${TMPDIR:-/tmp}?"
fi

first=0
number=0
while [ "$first" -lt "$images" ]; do
    outputs=$work/outputs_$number.json
    run "$trtexec" --loadEngine="$engine" --loadInputs="images:images_$number.bin" \
        --exportOutput="$outputs" --iterations=1 --warmUp=0 --duration=0 \
        ${no_graph:+"$no_graph"} ${transfers:+"$transfers"} \
        ${version_compatible:+"$version_compatible"}
    [ -s "$outputs" ] || refuse "trtexec wrote no outputs: is there room in ${TMPDIR:-/tmp}?"
    logits "$outputs" >"$work/batch"
    count=$(($(wc -l <"$work/batch")))
    [ "$count" -eq $((batch * classes)) ] || refuse "the engine gives $count logits for $batch images \
of $classes classes: build it from the graph of this bundle"
    # The file of expected logits ends with the last image; what the engine gives for padding is cut.
    od -A n -v -t f4 "logits_$number.bin" | awk '{ for (n = 1; n <= NF; n++) print $n }' >"$work/expected"
    head -n "$(($(wc -l <"$work/expected")))" "$work/batch" | paste "$work/expected" - >>"$work/pairs"
    first=$((first + batch))
    number=$((number + 1))
done

# The verdict is that of gft_edge/fidelity/compare.py, of the logits. trtexec prints six digits, so a tie for the
# first place is no other decision.
awk -v classes="$classes" -v agreement_bound="$agreement_bound" -v cosine_bound="$cosine_bound" '
    # By Newton: the awk of a small BusyBox has no sqrt.
    function root(square, value, n) {
        value = square > 1 ? square : 1
        for (n = 0; n < 100; n++) value = (value + square / value) / 2
        return value
    }
    {
        column = (NR - 1) % classes
        expected = $1 + 0
        number = $2 ~ /^[-+]?[0-9.]+([eE][-+]?[0-9]+)?$/
        given = number ? $2 + 0 : 0
        if (!column) {
            dot = expected_square = given_square = max_abs = top = given_top = broken = 0
            highest = expected
        }
        if (!number) broken = 1
        if (expected > highest) { highest = expected; top = column }
        values[column] = given
        if (given > values[given_top]) given_top = column
        dot += expected * given
        expected_square += expected * expected
        given_square += given * given
        difference = given > expected ? given - expected : expected - given
        if (difference > max_abs) max_abs = difference
        if (column < classes - 1) next

        images++
        if (values[top] == values[given_top]) given_top = top
        norms = root(expected_square) * root(given_square)
        cosine = dot / (norms > 1e-30 ? norms : 1e-30)
        if (broken) {
            printf "image %d: the logits hold NaN or infinity\n", images
            any_broken = 1
            next
        }
        agreeing += (given_top == top)
        cosines += cosine
        if (max_abs > worst) worst = max_abs
        printf "image %d: class %d, expected %d, cosine %.6f, max abs %.2g%s\n",
            images, given_top, top, cosine, max_abs, (given_top == top ? "" : "  <- another class")
    }
    END {
        agreement = agreeing / images
        mean = cosines / images
        if (any_broken) failures = "; the logits hold NaN or infinity"
        if (agreement < agreement_bound)
            failures = failures sprintf("; top-1 agreement %.4f is under %s", agreement, agreement_bound)
        if (mean < cosine_bound)
            failures = failures sprintf("; logit cosine %.6f is under %s", mean, cosine_bound)
        if (failures) {
            print "FAIL: " substr(failures, 3)
            exit 1
        }
        printf "PASS: %d images, top-1 agreement %.4f (at least %s), logit cosine %.6f (at least %s), max abs %.2g\n",
            images, agreement, agreement_bound, mean, cosine_bound, worst
        print "Which patches were kept is not checked here: gft-edge verify does, where Python is."
    }' "$work/pairs"
