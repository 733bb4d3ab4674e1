"""The demonstrations of a collection that is not finished: one file each, so that none is lost by an interruption."""

from __future__ import annotations

import io
import itertools
import json
import re
import shlex
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ddp_cli.data.demo import Demo
from ddp_cli.disk import atomic_file, remove_folder
from ddp_cli.errors import DataError
from ddp_cli.locks import final_path

ANOTHER_OUTPUT = "Choose another --out, or move it away."


class CollectionFolder:
    """The folder `OUT.partial` beside the output `OUT`, or beside what it links to.

    `collection.json` holds the `identity` of the collection: everything that determines its demos, but not their
    number. Attempt i starts from seed + i; its demo is in `attempt-I.npz`, or `attempt-I.failed` says that there is
    none. Every file is complete, since it is written under another name first.

    DataError if the folder holds demos of another collection, or anything else.
    """

    def __init__(self, out: Path, identity: dict[str, Any]) -> None:
        self.out = out = final_path(out)
        self.path = out.with_name(f"{out.name}.partial")
        if self.path.is_file():
            raise DataError(
                f"'{self.path}' is the unfinished recording of an earlier version.",
                f"Use its demonstrations with `{shlex.join(['ddp', 'convert', str(self.path)])}`. {ANOTHER_OUTPUT}",
            )
        self._succeeded = self._list_attempts()
        recorded = self._read_identity()
        if recorded and "environment" in identity and "environment" not in recorded:  # of an earlier version
            recorded["environment"] = identity["environment"]
            if recorded == identity:
                self._write_identity(identity)
        if recorded != identity and self.n_demos:
            raise self._mismatch(recorded, identity)
        if recorded != identity:
            remove_folder(self.path)
            self._succeeded = {}
            self._write_identity(identity)

    def _write_identity(self, identity: dict[str, Any]) -> None:
        with atomic_file(self.path / "collection.json") as partial:
            partial.write_text(json.dumps(identity))

    def _list_attempts(self) -> dict[int, bool]:
        """Attempt -> whether it succeeded."""
        matches = [re.fullmatch(r"attempt-(\d+)\.(npz|failed)", path.name) for path in self.path.glob("attempt-*")]
        return {int(match[1]): match[2] == "npz" for match in matches if match}

    def _read_identity(self) -> dict[str, Any] | None:
        """The identity of the recorded collection; None if there is none."""
        if not any(path for path in self.path.glob("*") if not path.name.startswith(".")):
            return None
        try:
            identity = json.loads((self.path / "collection.json").read_text())
            recorded = {key: identity[key] for key in ("task", "seed", "demonstrator", "versions")}
            recorded |= {"environment": identity["environment"]} if "environment" in identity else {}
            return recorded | ({"policy": dict(identity["policy"])} if "policy" in identity else {})
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise DataError(f"'{self.path}' was not written by `ddp collect`.", ANOTHER_OUTPUT) from None

    def _mismatch(self, recorded: dict[str, Any] | None, identity: dict[str, Any]) -> DataError:
        assert recorded is not None  # it has demos
        old, new = (_flatten(values) for values in (recorded, identity))
        keys = {**new, **old}
        differences = [
            f"{key} {old.get(key)} instead of {new.get(key)}" for key in keys if old.get(key) != new.get(key)
        ]
        command = ["ddp", "collect", "--task", str(recorded["task"]), "--seed", str(recorded["seed"])]
        command += ["-n", str(self.n_demos), "--out", str(self.out)]
        finish = f"Finish that one with `{shlex.join(command)}`"
        if "policy" in recorded:
            finish += " and the policy, --takeover and sampling options that it began with"
        if recorded.get("environment") != identity.get("environment"):
            finish += " and the file of the task that it began with"
        if any(recorded[key] != identity[key] for key in ("demonstrator", "versions")):
            finish += " and the versions that it began with"
        return DataError(
            f"'{self.path}' holds {count_demos(self.n_demos)} of another collection: {', '.join(differences)}.",
            f"{finish}, choose another --out, or move that folder away.",
        )

    @property
    def n_demos(self) -> int:
        """Number of recorded demos."""
        return sum(self._succeeded.values())

    @property
    def counts(self) -> dict[str, int]:
        """`demos`, `attempts` up to the last one that succeeded, and `failures` among them."""
        attempts = max((i for i, success in self._succeeded.items() if success), default=-1) + 1
        return {"demos": self.n_demos, "attempts": attempts, "failures": attempts - self.n_demos}

    @property
    def n_gaps(self) -> int:
        """Number of attempts before the last whose result is missing, because a damaged file was deleted."""
        return max(self._succeeded, default=-1) + 1 - len(self._succeeded)

    def missing_attempts(self) -> Iterator[int]:
        """The attempts that have not been made, without end."""
        recorded = set(self._succeeded)
        return (i for i in itertools.count() if i not in recorded)

    def add(self, attempt: int, demo: Demo | None) -> None:
        """Writes the demo of an attempt to disk; None for one that failed."""
        if demo is None:
            (self.path / f"attempt-{attempt:08d}.failed").touch()
        else:
            xml = np.frombuffer(zlib.compress(demo.xml.encode()), np.uint8)
            content = io.BytesIO()  # an archive that fails on a full disk prints a traceback when it is deleted
            recorded = {"policy_steps": demo.policy_steps, "success": demo.success}
            optional = {key: np.array(value) for key, value in recorded.items() if value is not None}
            np.savez(content, allow_pickle=False, xml=xml, seed=np.int64(demo.seed), **demo.arrays, **optional)
            with atomic_file(self._demo_path(attempt)) as partial:
                partial.write_bytes(content.getvalue())
        self._succeeded[attempt] = demo is not None

    def _demo_path(self, attempt: int) -> Path:
        return self.path / f"attempt-{attempt:08d}.npz"

    def __iter__(self) -> Iterator[Demo]:
        """The demos in the order of their attempts; DataError names a damaged file."""
        for attempt in sorted(i for i, success in self._succeeded.items() if success):
            path = self._demo_path(attempt)
            try:
                with np.load(path, allow_pickle=False) as file:
                    xml = zlib.decompress(file["xml"].tobytes()).decode()
                    recorded = {key: file[key].item() for key in ("policy_steps", "success") if key in file}
                    yield Demo(
                        file["states"], file["actions"], xml, int(file["seed"]), file.get("intended"), **recorded
                    )
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as e:
                raise DataError(f"'{path}' is damaged.", "Delete it, and run the same command again.") from e

    def remove(self) -> None:
        """Removes the folder and the demos in it."""
        remove_folder(self.path)


def count_demos(count: int) -> str:
    """`1 demonstration`, `2 demonstrations`."""
    return f"{count} demonstration{'' if count == 1 else 's'}"


def _flatten(identity: dict[str, Any]) -> dict[str, Any]:
    """Names that a user knows -> values."""
    names = {"demonstrator": "scripted policy version"}
    values = {names.get(key, key): value for key, value in identity.items() if key not in ("versions", "policy")}
    policy = {f"policy {key}": value for key, value in identity.get("policy", {}).items()}
    return values | policy | dict(identity["versions"])
