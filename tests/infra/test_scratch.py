"""Local NVMe: /work lies on the first disk that is blank, and on the boot volume where there is none."""

import pytest

from tests.infra.machine import Machine

BLANK, SIGNED, UNSURE = 2, 0, 8  # exit codes of blkid -p


def disk(machine: Machine, name: str, signature: int = BLANK, parts: str = "") -> None:
    """A disk as lsblk and blkid know it."""
    for folder in ("dev", "lsblk", "blkid"):
        (machine.root / folder).mkdir(exist_ok=True)
    machine.tell(f"dev/{name}", "")
    machine.tell(f"lsblk/{name}", f"{name}\n{parts}")
    machine.tell(f"blkid/{name}", str(signature))


def formatted(machine: Machine) -> list[str]:
    return [line.rpartition("/")[2] for line in machine.read("mkfs.log").splitlines()]


def test_a_blank_disk_is_formatted_and_mounted_before_the_job(machine: Machine) -> None:
    disk(machine, "nvme0n1")
    disk(machine, "nvme1n1")
    machine.first_boot()
    assert machine.read("mkfs.log") == f"-q -L gpujob {machine.root}/dev/nvme0n1\n"
    assert machine.read("mount.log") == f"-o noatime {machine.root}/dev/nvme0n1 {machine.root}/var/lib/gpu-job/work\n"
    assert machine.status()["reason"] == "complete"
    log = machine.read("var/log/gpu-job/boot.log")
    assert log.index("/work is on ") < log.index("phase: start")


@pytest.mark.parametrize(
    ("signature", "parts"), [(SIGNED, ""), (UNSURE, ""), (BLANK, "nvme0n1p1\n")], ids=["signed", "unsure", "parted"]
)
def test_a_disk_that_may_hold_something_is_left_alone(machine: Machine, signature: int, parts: str) -> None:
    disk(machine, "nvme0n1", signature, parts)
    disk(machine, "nvme1n1")
    machine.first_boot()
    assert formatted(machine) == ["nvme1n1"]


def test_without_a_blank_disk_it_is_the_boot_volume(machine: Machine) -> None:
    disk(machine, "nvme0n1", SIGNED)
    machine.first_boot()
    assert (machine.read("mkfs.log"), machine.read("mount.log")) == ("", "")
    assert machine.status()["reason"] == "complete"
    assert "no blank local NVMe: /work is on the boot volume" in machine.read("var/log/gpu-job/boot.log")


@pytest.mark.parametrize("broken", ["mkfs", "mount"])
def test_a_disk_that_fails_costs_speed_and_not_the_run(machine: Machine, broken: str) -> None:
    disk(machine, "nvme0n1")
    if broken == "mkfs":
        machine.tell("mkfs.code", "1")
    else:
        machine.fake("mount", "exit 32")
    machine.first_boot()
    assert machine.status()["reason"] == "complete"
    assert "/work is on the boot volume" in machine.read("var/log/gpu-job/boot.log")


def test_after_a_reboot_it_is_mounted_and_not_formatted_again(machine: Machine) -> None:
    disk(machine, "nvme0n1")
    machine.first_boot()
    (machine.root / "mounted").unlink()
    machine.tell("blkid/nvme0n1", str(SIGNED))
    machine.start("gpu-job-boot.service")
    assert formatted(machine) == ["nvme0n1"]
    assert len(machine.read("mount.log").splitlines()) == 2


def test_what_is_mounted_stays(machine: Machine) -> None:
    disk(machine, "nvme0n1")
    machine.tell("mounted", "")
    machine.first_boot()
    assert machine.read("mkfs.log") == ""
