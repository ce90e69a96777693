"""Writing files so that nothing on disk is ever half-written, and naming content by its hash."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unlearnkit.errors import UserError


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it on success, remove it on failure.

    Raises:
        UserError: the disk is full or the folder cannot be written; `path` itself is then untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        # Still there only if something failed before the rename.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """As `atomic_path`, for a folder that is filled under a temporary name."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(path)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def one_at_a_time(path: str | Path) -> Iterator[None]:
    """Wait until no other process is inside with the same path; a process that dies lets go of it.

    Where the system has no such locks, nobody waits.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            Path(path).parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(held.enter_context(Path(path).open("a")), fcntl.LOCK_EX)
        yield


def _explained(error: OSError, path: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(
            f"the disk is full: could not write {path}; free some space and run the same command again"
        )
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR):
        return UserError(f"cannot write {path} ({error.strerror}); choose a folder that you may write to")
    return error


def write_atomic(path: str | Path, data: str | bytes) -> None:
    """Write text (UTF-8) or bytes to `path` through a temporary name."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON; NaN must have been replaced by null beforehand."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: the file is missing or is not JSON (half-written by something else than this library).
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not readable as JSON ({error}); delete it and run the command again"
        ) from None


def fingerprint(*parts: Any) -> str:
    """A 16-digit hexadecimal hash of JSON-like values or bytes: equal content, equal name."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        if not isinstance(part, bytes):
            part = json.dumps(
                part, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str
            ).encode()
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


#: Bytes; what did not fit leaves less than that of a disk.
_LITTLE = 1 << 26


def no_space(error: BaseException | None, folder: Path) -> bool:
    """Whether a full disk is behind an error, however a library has wrapped it.

    Args:
        folder: on the disk that was written to; it need not exist yet.
    """
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        text = str(error)
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in text:
            return True
        # torch.save says only that it wrote less than it meant to.
        if "inline_container" in text or "PytorchStreamWriter failed" in text:
            there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
            if shutil.disk_usage(there).free < _LITTLE:
                return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False
