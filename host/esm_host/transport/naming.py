"""Changes to the names of devices: ``devices.toml`` and the certificates next to it.

Comments stay; whatever is written is for its owner only.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from esm_host.arguments import argument
from esm_host.errors import UsageError
from esm_host.transport.devices import (
    Entry,
    beside,
    config_path,
    configured,
    groups,
    text_of,
    unknown,
)
from esm_host.transport.distinct import same_agent
from esm_protos.private_files import write_private

_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,63}", re.ASCII)


def check_new(name: str, force: bool = False) -> None:
    """Raises UsageError for a name that cannot be added.

    Args:
        force: a device may have it already.
    """
    _check_spelling(name, "device")
    if name in groups():
        raise UsageError(f"there is a group '{name}' already: choose another name")
    if name in configured() and not force:
        raise UsageError(f"there is a device '{name}' already: {argument('force')} replaces it")


def pinned_file(name: str) -> str:
    """Of a device's certificate, next to the configuration."""
    return f"{config_path().stem}.{name}.pem"


def save(name: str, entry: Entry, certificate: bytes | None = None) -> Path:
    """Writes a device to the configuration, whose comments stay, for its owner only.

    Args:
        certificate: to be kept as ``entry.pinned``.

    Returns:
        The configuration's path.

    Raises:
        UsageError: the configuration cannot be understood.
        OSError: it cannot be written.
    """
    import tomlkit

    with _edited() as document:
        devices = document.setdefault("devices", tomlkit.table(is_super_table=True))
        table = devices.setdefault(name, tomlkit.table())
        for key, value in asdict(entry).items():
            if value is not None:
                table[key] = value
            elif key in table:
                del table[key]
        if certificate is not None:
            assert entry.pinned is not None
            _write_private(beside(entry.pinned), certificate)
    return config_path()


def save_group(name: str, devices: Sequence[str]) -> Path:
    """Writes a group, or replaces one; raises as :func:`save` does, and for unknown devices."""
    import tomlkit

    known = configured()
    _check_spelling(name, "group")
    if name in known:
        raise UsageError(f"there is a device '{name}' already: choose another name for the group")
    for device in devices:
        if device not in known:
            raise unknown(device, known, "a device that has a name")
    addresses: dict[str, str] = {}
    for device in devices:
        if (other := addresses.setdefault(known[device].address, device)) != device:
            raise same_agent(other, device)
    with _edited() as document:
        document.setdefault("groups", tomlkit.table())[name] = list(dict.fromkeys(devices))
    return config_path()


def remove(name: str, force: bool = False) -> tuple[str, ...]:
    """Forgets a device with its pinned certificate, or a group.

    Args:
        force: takes the device out of its groups too.

    Returns:
        Groups that the device was the last one of, and which are gone with it.

    Raises:
        UsageError: the name is unknown, or the device is in a group.
        OSError: the configuration cannot be written.
    """
    grouped = groups()
    if name in grouped:
        with _edited() as document:
            del document["groups"][name]
        return ()
    known = configured()
    if name not in known:
        raise unknown(name, {**known, **grouped}, "a device or group that has a name")
    holders = [group for group, devices in grouped.items() if name in devices]
    if holders and not force:
        raise UsageError(
            f"'{name}' is in group {', '.join(holders)}: {argument('force')} also removes it there"
        )
    with _edited(_without_section(name)) as document:
        if name in document.get("devices", {}):
            del document["devices"][name]
        gone = tuple(group for group in holders if set(grouped[group]) == {name})
        for group in holders:
            if group in gone:
                del document["groups"][group]
            else:
                array = document["groups"][group]
                while name in array:
                    array.remove(name)
    if known[name].pinned == pinned_file(name):  # a file elsewhere is not ours to delete
        beside(pinned_file(name)).unlink(missing_ok=True)
    return gone


def rename(old: str, new: str) -> None:
    """Gives a device, in its groups too, or a group another name; moves its certificate.

    Raises:
        UsageError: there is no such name, or the new one is taken.
        OSError: the configuration cannot be written.
    """
    known, grouped = configured(), groups()
    if new in known:
        raise UsageError(f"there is a device '{new}' already: choose another name, or remove it")
    check_new(new)
    if old in grouped:
        with _edited() as document:
            document["groups"][new] = document["groups"].pop(old)
        return
    if old not in known:
        raise unknown(old, {**known, **grouped}, "a device or group that has a name")
    moves = known[old].pinned == pinned_file(old)
    with _edited(_renamed_section(old, new)) as document:
        devices = document["devices"]
        if old in devices:
            devices[new] = devices.pop(old)
        if moves:
            devices[new]["pinned"] = pinned_file(new)
            if (certificate := beside(pinned_file(old))).exists():
                _write_private(beside(pinned_file(new)), certificate.read_bytes())
        for group in document.get("groups", {}).values():
            for at, device in enumerate(group):
                if device == old:
                    group[at] = new
    if moves:
        beside(pinned_file(old)).unlink(missing_ok=True)


def _check_spelling(name: str, what: str) -> None:
    if name == "local" or not _NAME.fullmatch(name):
        raise UsageError(f"'{name}' is no name for a {what}: use letters, digits, '.', '_' and '-'")


@contextmanager
def _edited(text: str | None = None) -> Iterator[Any]:
    """The configuration as a document that keeps its comments; written when the block is over.

    Args:
        text: to begin with, in place of the file's.
    """
    import tomlkit
    import tomlkit.exceptions

    path = config_path()
    try:
        if text is None:
            text = text_of(path) if path.exists() else ""
        document = tomlkit.parse(text)
        yield document
        written = tomlkit.dumps(document)
        if tomllib.loads(written) != document.unwrap():  # what tomlkit makes of some dotted keys
            raise ValueError("it has dotted keys: write [devices.NAME] and [groups] instead")
    except (ValueError, TypeError, AttributeError, tomlkit.exceptions.TOMLKitError) as error:
        raise UsageError(f"{path} cannot be changed ({error}): correct it first") from error
    _write_private(path, written.encode())


def _section(text: str, name: str) -> re.Match[str] | None:
    """Of a device, as it stands in the file: its header, and all up to an empty line.

    None where it is written in another way.
    """
    word = re.escape(name)
    header = rf"""[ \t]*\[[ \t]*devices[ \t]*\.[ \t]*(?P<name>{word}|"{word}"|'{word}')[ \t]*\]"""
    return re.search(rf"^{header}.*\n?(?:[ \t]*[^\[\s].*\n?)*\n?", text, re.MULTILINE)


def _without_section(name: str) -> str | None:
    """The file's text without a device, and with every comment that stands apart from it.

    None where that is better left to the parser, which counts those to the device above.
    """
    text = text_of(config_path())
    found = _section(text, name)
    if found is None:
        return None
    wanted = tomllib.loads(text)
    del wanted["devices"][name]
    return _if_it_says(text[: found.start()] + text[found.end() :], wanted)


def _renamed_section(old: str, new: str) -> str | None:
    """The file's text with another name in a device's header, which stays where it is; or None."""
    text = text_of(config_path())
    found = _section(text, old)
    if found is None:
        return None
    word = f'"{new}"' if "." in new else new
    wanted = tomllib.loads(text)
    wanted["devices"][new] = wanted["devices"].pop(old)
    return _if_it_says(text[: found.start("name")] + word + text[found.end("name") :], wanted)


def _if_it_says(text: str, wanted: dict[str, Any]) -> str | None:
    try:
        return text if {"devices": {}, **tomllib.loads(text)} == wanted else None
    except ValueError:
        return None


def _write_private(path: Path, data: bytes) -> None:
    path = path.resolve()  # a link stays one
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, data)
