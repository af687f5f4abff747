"""Editing of device names: ``devices.toml`` and the certificates beside it.

Comments are kept. Written files are readable by their owner only.
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
    unknown_device,
)
from esm_host.transport.distinct import same_agent
from esm_protos.private_files import write_private

_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,63}", re.ASCII)


def check_new(name: str, force: bool = False) -> None:
    """Check that a name can be added.

    Args:
        name: The name.
        force: Whether the name of an existing device is accepted.

    Raises:
        UsageError: the name is invalid or taken.
    """
    _check_spelling(name, "device")
    if name in groups():
        raise UsageError(f"there is already a group '{name}': choose another name")
    if name in configured() and not force:
        raise UsageError(f"there is already a device '{name}': replace it with {argument('force')}")


def pinned_file(name: str) -> str:
    """Return the file name of a device's certificate, beside the configuration."""
    return f"{config_path().stem}.{name}.pem"


def save(name: str, entry: Entry, certificate: bytes | None = None) -> Path:
    """Write a device to the configuration.

    Args:
        name: Name of the device.
        entry: Its entry.
        certificate: Certificate to store as ``entry.pinned``; None for none.

    Returns:
        Path of the configuration.

    Raises:
        UsageError: the configuration is unreadable.
        OSError: the configuration cannot be written.
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
    """Write a group, or replace one.

    Raises:
        UsageError: as in :func:`save`, a device is unknown, or two names lead to one agent.
        OSError: the configuration cannot be written.
    """
    import tomlkit

    known = configured()
    _check_spelling(name, "group")
    if name in known:
        raise UsageError(f"there is already a device '{name}': choose another name for the group")
    for device in devices:
        if device not in known:
            raise unknown_device(device, known, "the name of a device")
    addresses: dict[str, str] = {}
    for device in devices:
        if (other := addresses.setdefault(known[device].address, device)) != device:
            raise same_agent(other, device)
    with _edited() as document:
        document.setdefault("groups", tomlkit.table())[name] = list(dict.fromkeys(devices))
    return config_path()


def remove(name: str, force: bool = False) -> tuple[str, ...]:
    """Delete a device with its pinned certificate, or a group.

    Args:
        name: Name of the device or group.
        force: Whether to remove the device from its groups too.

    Returns:
        Groups that became empty and were deleted too.

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
        raise unknown_device(name, {**known, **grouped}, "the name of a device or group")
    holders = [group for group, devices in grouped.items() if name in devices]
    if holders and not force:
        raise UsageError(
            f"'{name}' is in group {', '.join(holders)}: give {argument('force')} to remove it"
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
    if known[name].pinned == pinned_file(name):  # a file elsewhere belongs to the user
        beside(pinned_file(name)).unlink(missing_ok=True)
    return gone


def rename(old: str, new: str) -> None:
    """Rename a device, also in its groups and its certificate file, or rename a group.

    Raises:
        UsageError: the old name is unknown, or the new one is taken.
        OSError: the configuration cannot be written.
    """
    known, grouped = configured(), groups()
    if new in known:
        raise UsageError(f"there is already a device '{new}': choose another name, or remove it")
    check_new(new)
    if old in grouped:
        with _edited() as document:
            document["groups"][new] = document["groups"].pop(old)
        return
    if old not in known:
        raise unknown_device(old, {**known, **grouped}, "the name of a device or group")
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
        raise UsageError(
            f"'{name}' is not a valid name of a {what}: use letters, digits, '.', '_' and '-'"
        )


@contextmanager
def _edited(text: str | None = None) -> Iterator[Any]:
    """Open the configuration as a document with its comments; write it at the end.

    Args:
        text: Text to start from instead of the file's; None for the file's.
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
        if tomllib.loads(written) != document.unwrap():  # tomlkit loses some dotted keys
            raise ValueError("it has dotted keys: write [devices.NAME] and [groups] instead")
    except (ValueError, TypeError, AttributeError, tomlkit.exceptions.TOMLKitError) as error:
        raise UsageError(f"{path} cannot be changed ({error}): correct it first") from error
    _write_private(path, written.encode())


def _section(text: str, name: str) -> re.Match[str] | None:
    """Return the section of a device in the file: its header and all lines up to an empty one.

    None if it is written in another form.
    """
    word = re.escape(name)
    header = rf"""[ \t]*\[[ \t]*devices[ \t]*\.[ \t]*(?P<name>{word}|"{word}"|'{word}')[ \t]*\]"""
    return re.search(rf"^{header}.*\n?(?:[ \t]*[^\[\s].*\n?)*\n?", text, re.MULTILINE)


def _without_section(name: str) -> str | None:
    """Return the file's text without a device, with all separate comments kept.

    None if the section has another form; the parser then removes it with its comments.
    """
    text = text_of(config_path())
    found = _section(text, name)
    if found is None:
        return None
    wanted = tomllib.loads(text)
    del wanted["devices"][name]
    return _if_it_says(text[: found.start()] + text[found.end() :], wanted)


def _renamed_section(old: str, new: str) -> str | None:
    """Return the file's text with a device's header renamed in place; None for another form."""
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
    path = path.resolve()  # keep a symbolic link
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(path, data)
