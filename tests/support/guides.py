"""The pages in docs/ that a person follows line by line: their fenced blocks and commands."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from tests.support.paths import ROOT

# The languages of the blocks; of those of shell a word says on which machine they are typed.
LANGUAGES = ("sh", "sshconfig", "text")


@dataclass(frozen=True)
class Guide:
    """A page by its name in docs/."""

    name: str

    @property
    def text(self) -> str:
        return (ROOT / "docs" / self.name).read_text(encoding="utf-8")

    def blocks(self, language: str) -> list[tuple[str, str]]:
        """(what follows the language, content) of each fenced block."""
        return re.findall(
            rf"^```{language}\b ?(.*)\n((?s:.*?))^```$", self.text, flags=re.MULTILINE
        )

    def commands(self, where: str) -> list[str]:
        """The lines of shell that are typed on the workstation or on the board."""
        return [
            line
            for place, text in self.blocks("sh")
            if place == where
            for line in text.splitlines()
        ]


JETSON, PI, DEVICES = Guide("jetson.md"), Guide("raspberry-pi.md"), Guide("devices.md")

# All that is not run here. A command of a guide that is neither here nor of a kind in RUN fails; one with
# --on is parsed.
NEEDS_MORE = {
    JETSON: (
        "cat /etc/nv_tegra_release",
        "sudo apt update",
        "sudo apt install nvidia-jetpack",
        "sudo apt install python3-venv",
        "python -c 'import tensorrt; print(tensorrt.__version__)'",
        "pip install 'numpy<2' dist/gft_edge-*.whl",
        "grep POWER_MODEL /etc/nvpmodel.conf",
        "sudo nvpmodel -m 0",
        "sudo nvpmodel -q",
        "sudo jetson_clocks --store clocks.before",
        "sudo jetson_clocks",
        "sudo jetson_clocks --show",
        "cat /sys/devices/system/cpu/offline",
        'sh bundles/grocery-trt/golden/check.sh "$ENGINE"',
        'pip install "$(ls dist/gft_edge-*.whl)[video]"',
        "gft-edge predict bundles/grocery-trt csi:0 --smooth 1",
        "gft-edge predict bundles/grocery-trt camera:0 --save seen.mp4",
        'gft-edge predict bundles/grocery-trt "gst:nvarguscamerasrc sensor-id=1 ! nvvidconv flip-method=2 ! '
        'video/x-raw,format=BGRx"',
        '/usr/src/tensorrt/bin/trtexec --loadEngine="$ENGINE" --warmUp=500 --duration=10 --useCudaGraph '
        "--useSpinWait",
        "sudo systemctl set-default multi-user.target",
        "sudo fallocate -l 8G /mnt/8GB.swap",
        "sudo chmod 600 /mnt/8GB.swap",
        "sudo mkswap /mnt/8GB.swap",
        "sudo swapon /mnt/8GB.swap",
    ),
    PI: (
        "cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
        "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
        "vcgencmd measure_temp",
        "vcgencmd get_throttled",
        'pip install "$(ls dist/gft_edge-*.whl)[onnx]"',
    ),
    DEVICES: (
        "ssh-copy-id board",
        "ssh board true",
        "gft-edge report fleet/board.json fleet/nano.json fleet/pi5.json --html fleet.html",
    ),
}
# How the commands begin that are run.
RUN = {
    "workstation": ("gft-edge ", "pip wheel --no-deps "),
    "board": ("gft-edge ", "python3 -m venv ", ". ~/gft/bin/activate", "ENGINE="),
}


def is_on_device(command: str) -> bool:
    """Whether gft-edge does it on a device, over ssh."""
    return command.startswith("gft-edge ") and "--on" in shlex.split(command)


def is_run(guide: Guide, where: str, command: str) -> bool:
    return (
        command.startswith(RUN[where])
        and command not in NEEDS_MORE[guide]
        and not is_on_device(command)
    )
