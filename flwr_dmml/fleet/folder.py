"""The folder of a fleet: the authority, and a folder to copy for the SuperLink and each device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..base.files import write_whole
from .certificates import (
    PEER,
    REVOKED,
    SERVER,
    Authority,
    Wanted,
    days_left,
    make_folder,
    make_node_key,
    read_certificate,
)
from .config import COPY_IT_AGAIN, SUPERLINK, Device, Fleet, FleetError, as_ip
from .scripts import CONFIG, connection, device_files, superlink_files

LOOPBACK = ("127.0.0.1", "localhost")
DEVICES, STEM = "devices", "peer"
"""The folder of the devices' own, and the name of their certificates and keys in there."""


@dataclass
class Prepared:
    """Result of :func:`prepare`.

    Attributes
    ----------
    made, renewed, kept : list of str
        New; with new certificates; with the keys and certificates that were there.
    changed : list of str
        Of those kept, whose other files have changed: their folders must be copied again.
    rotated : list of str
        With new keys and certificates instead of those that were there.
    dropped : list of str
        Folders of devices that the fleet no longer has.
    revoked : list of str
        Devices whose certificates are revoked.
    """

    made: list[str] = field(default_factory=list)
    renewed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    rotated: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)


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

    @property
    def node_key(self) -> Path:
        """The key by which the SuperLink knows a device."""
        return self.folder / "node-key"


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
            stem=STEM,
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
        Whose certificates are issued anew, for the same keys: devices, or ``superlink``.

    Raises
    ------
    FleetError
        Certificates that are there are not what the fleet needs, and are not to be renewed; or one
        that is revoked is to be.
    """
    everyone, issuer = holders(fleet, folder), authority(folder)
    _known(renew, everyone, "--renew ")
    gone = _revoked_names(everyone, issuer)
    if again := [name for name in renew if name in gone]:
        raise FleetError(
            f"--renew {again[0]}: it is revoked, and this keeps its key: flwr-dmml fleet rotate "
            "gives it new ones"
        )
    _refuse_what_does_not_fit(everyone, issuer, [*renew, *gone])
    return _filled(fleet, folder, everyone, renew)


def rotate(
    fleet: Fleet,
    folder: Path,
    names: Sequence[str] = (),
    before: Callable[[Sequence[str]], object] = lambda names: None,
) -> Prepared:
    """Replace keys and certificates; neighbours refuse the old ones.

    Parameters
    ----------
    fleet : Fleet
        The fleet.
    folder : Path
        Made by :func:`prepare`.
    names : sequence of str
        Devices, or ``superlink``. By default all, and the authority itself: then everything that
        the old one has issued is refused everywhere. Of a single SuperLink the old certificate
        stays good, as Flower reads no revocation list.
    before : callable
        Given the devices' names when all has been checked, before anything is changed.

    Raises
    ------
    FleetError
        A name is unknown, the folder is not there, or the authority's key.
    """
    everyone, issuer = holders(fleet, folder), authority(folder)
    _known(names, everyone)
    chosen = [holder for holder in everyone if not names or holder.name in names]
    old = [holder for holder in chosen if holder.certificate.exists()]
    if not old:
        raise FleetError(f"{folder} has no certificates to replace: run flwr-dmml fleet init")
    if names:
        others = [holder for holder in everyone if holder not in chosen]
        _refuse_what_does_not_fit(others, issuer, _revoked_names(others, issuer))
        issuer.key()
    before([holder.name for holder in old if holder.is_device])
    if names:
        issuer.revoke(*(read_certificate(holder.certificate) for holder in old))
    else:
        issuer.forget()
    for holder in chosen:
        keys = holder.key, holder.node_key, holder.node_key.with_suffix(".pub")
        for file in (holder.certificate, *keys):
            file.unlink(missing_ok=True)
    done = _filled(fleet, folder, everyone)
    done.rotated = [name for name in done.made if name in {holder.name for holder in old}]
    done.made = [name for name in done.made if name not in done.rotated]
    return done


def revoke(folder: Path, name: str) -> list[str]:
    """Take back the certificate of a device, of this fleet or dropped from it.

    Returns the folders of devices that hold the new revocation list: to be copied again.

    Raises
    ------
    FleetError
        There is no such device, or the authority's key is not there.
    """
    there = _folders(folder)
    if name not in there:
        raise FleetError(f"{name}: there are {', '.join(there)}")
    issuer = authority(folder)
    issuer.revoke(read_certificate(folder / DEVICES / name / f"{STEM}.crt"))
    told = [other for other in there if other != name]
    for other in told:
        file = folder / DEVICES / other / REVOKED
        write_whole(file, issuer.revoked_file.read_bytes(), 0o600)
    return told


def _known(names: Sequence[str], everyone: Sequence[Holder], said: str = "") -> None:
    there = [holder.name for holder in everyone]
    if unknown := [name for name in names if name not in there]:
        raise FleetError(f"{said}{unknown[0]}: there are {', '.join(there)}")


def _folders(folder: Path) -> list[str]:
    """Return whose folders there are."""
    devices = folder / DEVICES
    return sorted(p.name for p in devices.iterdir() if p.is_dir()) if devices.is_dir() else []


def _revoked_names(everyone: Sequence[Holder], issuer: Authority) -> list[str]:
    there = [holder for holder in everyone if holder.certificate.exists()]
    return [holder.name for holder in there if issuer.has_revoked(holder.certificate)]


def _filled(
    fleet: Fleet, folder: Path, everyone: Sequence[Holder], renew: Sequence[str] = ()
) -> Prepared:
    """Write what is missing in all folders, and what follows from the fleet's file."""
    issuer = authority(folder)
    make_folder(folder)
    done = Prepared()
    if issuer.make(fleet.name):
        done.made.append("ca")
    for holder in everyone:
        _fill(holder, fleet, issuer, holder.name in renew, done)
    make_folder((folder / CONFIG).parent)
    text = connection(fleet, issuer.certificate_file.resolve())
    write_whole(folder / CONFIG, text.encode(), 0o600)
    names = [holder.name for holder in everyone]
    done.dropped = [name for name in _folders(folder) if name not in names]
    done.revoked = _revoked_names(everyone, issuer)
    return done


def _refuse_what_does_not_fit(
    everyone: Sequence[Holder], issuer: Authority, but: Sequence[str]
) -> None:
    old = [h for h in everyone if h.certificate.exists() and h.name not in but]
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
    fresh_key = holder.is_device and make_node_key(holder.node_key, f"{holder.name}.{fleet.name}")
    files = {name: text.encode() for name, text in holder.files.items()}
    files["ca.crt"] = issuer.certificate_file.read_bytes()
    if holder.is_device:
        files[REVOKED] = issuer.revoked_file.read_bytes()
    changed = False
    for name, content in files.items():
        file = holder.folder / name
        changed |= not file.exists() or file.read_bytes() != content
        write_whole(file, content, 0o700 if name.endswith(".sh") else 0o600)
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
        f"{name}: its certificate {when} ({until}): flwr-dmml fleet init ... --renew {name}, "
        f"{COPY_IT_AGAIN}"
    )
