"""A Classifier belongs to the process that loaded it, and its threads may use it until it is closed."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gft_edge import Classifier
from gft_edge.datasets import read_split
from gft_edge.errors import UsageError
from tests.support.refusals import refusal_of

TARGETS = ["onnx", "openvino"]

# Each child does one thing and ends as a process does; one that hangs is killed.
FORKED = """
import os, signal, sys, time
from gft_edge import Classifier
from gft_edge.errors import UsageError

bundle, *images = sys.argv[1:]
classifier = Classifier.load(bundle)
expected = classifier.predict(images)

def refuse(given):
    try:
        classifier.predict(given)
    except UsageError as error:
        assert "in the process that uses it" in str(error)
    else:
        sys.exit("it predicted")

def load_again():
    with Classifier.load(bundle) as own:
        assert own.predict(images) == expected

def drop():
    global classifier
    del classifier

for work in (lambda: refuse(images[0]), lambda: refuse(images), lambda: classifier.close(),
             lambda: None, drop, load_again):
    sys.stdout.flush()
    child = os.fork()
    if not child:
        work()
        sys.exit()
    until = time.monotonic() + 60
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    print(ended[1])
assert classifier.predict(images) == expected
"""


@pytest.fixture(scope="module")
def images(micro_data: Path) -> list[Path]:
    """Four images."""
    return list(read_split(micro_data, "test").paths[:4])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("target", TARGETS)
def test_a_forked_process_refuses_the_engine_of_the_other_and_ends(
    micro_bundles: dict[str, Path], images: list[Path], target: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED, micro_bundles[target],
         *images], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0"] * 6, done.stderr


def test_a_classifier_is_not_pickled_or_copied(micro_bundles: dict[str, Path]) -> None:
    with Classifier.load(micro_bundles["onnx"]) as loaded:
        for work in (pickle.dumps, copy.copy, copy.deepcopy):
            refusal_of(UsageError, partial(work, loaded), "in the process that uses it")


@pytest.mark.parametrize("target", TARGETS)
def test_threads_that_predict_while_it_is_closed_finish_or_are_told_so(
    micro_bundles: dict[str, Path], images: list[Path], target: str
) -> None:
    with Classifier.load(micro_bundles[target]) as loaded:
        pixels = [loaded.prepare(image) for image in images]
    others: list[Any] = []
    said: list[str] = []
    for given in (pixels[0], pixels):
        for _ in range(5):
            loaded = Classifier.load(micro_bundles[target])
            begun = threading.Barrier(4)

            def work(loaded: Classifier, given: Any, begun: threading.Barrier) -> None:
                begun.wait()
                try:
                    while True:
                        loaded.predict(given)
                except UsageError as error:
                    said.append(str(error))
                except BaseException as error:
                    others.append(error)

            threads = [threading.Thread(target=work, args=(loaded, given, begun)) for _ in range(3)]
            for thread in threads:
                thread.start()
            begun.wait()
            loaded.predict(given)
            loaded.close()
            for thread in threads:
                thread.join()
    assert not others
    assert len(said) == 30
    assert all("closed" in line for line in said)
