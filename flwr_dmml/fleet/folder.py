"""The folder of a fleet: the authority, and a folder to copy for the SuperLink and each device."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .certificates import (
    PEER,
    SERVER,
    Authority,
    Wanted,
    days_left,
    make_folder,
    make_node_key,
    read_certificate,
    write_file,
)
from .config import SUPERLINK, Device, Fleet, FleetError, as_ip
from .scripts import CONFIG, connection, device_files, superlink_files

LOOPBACK = ("127.0.0.1", "localhost")
DEVICES = "devices"


@dataclass
class Prepared:
    """Result of :func:`prepare`.

    Attributes
    ----------
    made, renewed, kept : list of str
        New; with new certificates; with the keys and certificates that were there.
    changed : list of str
        Of those kept, whose other files have changed: their folders must be copied again.
    dropped : list of str
        Folders of devices that the fleet no longer has.
    """

    made: list[str] = field(default_factory=list)
    renewed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Holder:
    """Holder of a folder and a certificate: the SuperLink, or a device."""

    name: str
    folder: Path
    stem: str
    wanted: Wanted
    files: dict[str, str]
    is_device: bool

    @property
    def certificate(self) -> Path:
        """The certificate's file."""
        return self.folder / f"{self.stem}.crt"

    @property
    def key(self) -> Path:
        """The certificate's key."""
        return self.folder / f"{self.stem}.key"


def authority(folder: Path) -> Authority:
    """Return the authority of a fleet's folder."""
    return Authority(folder / "ca")


def device_folder(folder: Path, device: Device) -> Path:
    """Return what is to be copied to a device."""
    return folder / DEVICES / device.name


def holders(fleet: Fleet, folder: Path) -> list[Holder]:
    """Return the SuperLink and the devices, with what their folders in ``folder`` are to hold."""
    host, link = fleet.superlink.host, folder / "superlink"
    number = as_ip(host)
    loopback = number.is_loopback if number else host == "localhost"
    addresses = (host, *(name for name in LOOPBACK if loopback and name != host))
    place = (fleet.superlink.dir or str(link.resolve())).rstrip("/")
    coordinator = Holder(
        name=SUPERLINK,
        folder=link,
        stem="server",
        wanted=Wanted(SUPERLINK, addresses, SERVER),
        files=superlink_files(fleet, place),
        is_device=False,
    )
    return [coordinator] + [
        Holder(
            name=device.name,
            folder=device_folder(folder, device),
            stem="peer",
            wanted=Wanted(f"device-{device.partition_id}", (device.address,), PEER),
            files=device_files(fleet, device),
            is_device=True,
        )
        for device in fleet.devices
    ]


def prepare(fleet: Fleet, folder: Path, renew: Sequence[str] = ()) -> Prepared:
    """Make what a fleet needs in ``folder``, or add what is new to what is there.

    Keys are never overwritten. Scripts, environments, units and the connection are always written.

    Parameters
    ----------
    fleet : Fleet
        The fleet.
    folder : Path
        New, or made by this function.
    renew : sequence of str
        Whose certificates are issued anew: devices, or ``superlink``.

    Raises
    ------
    FleetError
        Certificates that are there are not what the fleet needs, and are not to be renewed.
    """
    everyone, issuer = holders(fleet, folder), authority(folder)
    names = [holder.name for holder in everyone]
    if unknown := [name for name in renew if name not in names]:
        raise FleetError(f"--renew {unknown[0]}: there are {', '.join(names)}")
    _refuse_what_does_not_fit(everyone, issuer, renew)
    make_folder(folder)
    done = Prepared()
    if issuer.make(fleet.name):
        done.made.append("ca")
    for holder in everyone:
        _fill(holder, fleet, issuer, holder.name in renew, done)
    make_folder((folder / CONFIG).parent)
    text = connection(fleet, issuer.certificate_file.resolve())
    write_file(folder / CONFIG, text.encode(), 0o600)
    there = sorted(path.name for path in (folder / DEVICES).iterdir() if path.is_dir())
    done.dropped = [name for name in there if name not in names]
    return done


def _refuse_what_does_not_fit(
    everyone: Sequence[Holder], issuer: Authority, renew: Sequence[str]
) -> None:
    old = [h for h in everyone if h.certificate.exists() and h.name not in renew]
    if not old:
        return
    objections = {
        h.name: why for h in old if (why := issuer.objection(h.wanted, h.key, h.certificate))
    }
    if objections:
        lines = [f"the certificate of {name} {why}" for name, why in objections.items()]
        again = " ".join(f"--renew {name}" for name in objections)
        raise FleetError("\n  ".join([*lines, f"to issue new ones: {again}"]))


def _fill(holder: Holder, fleet: Fleet, issuer: Authority, renew: bool, done: Prepared) -> None:
    """Write one folder; say in ``done`` what was done."""
    make_folder(holder.folder.parent)
    make_folder(holder.folder)
    was_there = holder.certificate.exists()
    if renew or not was_there:
        issuer.issue(holder.wanted, holder.key, holder.certificate)
    fresh_key = holder.is_device and make_node_key(
        holder.folder / "node-key", f"{holder.name}.{fleet.name}"
    )
    files = {name: text.encode() for name, text in holder.files.items()}
    files["ca.crt"] = issuer.certificate_file.read_bytes()
    changed = False
    for name, content in files.items():
        file = holder.folder / name
        changed |= not file.exists() or file.read_bytes() != content
        write_file(file, content, 0o700 if name.endswith(".sh") else 0o600)
    if renew and was_there:
        done.renewed.append(holder.name)
    elif fresh_key or not was_there:
        done.made.append(holder.name)
    else:
        done.kept.append(holder.name)
        done.changed += [holder.name] if changed else []


def certificate_problem(name: str, file: Path, soon: int) -> tuple[str, str]:
    """Return until when a certificate is valid, and what is wrong with that, or nothing."""
    certificate = read_certificate(file)
    until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
    left = days_left(certificate)
    if left >= soon:
        return until, ""
    when = f"expires in {left} days" if left >= 0 else "has expired"
    if name == "ca":
        return until, f"the authority's certificate {when} ({until}): make a new folder"
    return until, (
        f"{name}: its certificate {when} ({until}): flwr-dmml fleet init ... --renew {name}, copy "
        "its folder again, and start it anew"
    )
