"""Weights from a model hub: `hf:OWNER/REPO[@REVISION][/PATH]` becomes a path on this machine.

huggingface_hub (`pip install 'cdsde[hub]'`) fetches the files into its cache. It follows its own
variables: HF_HOME and HF_HUB_CACHE (where the cache is), HF_HUB_OFFLINE (nothing is fetched),
HF_TOKEN or `hf auth login` (repositories that ask who you are) and HF_ENDPOINT (another hub).
Only files that are needed are fetched, and nothing else goes out.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from cdsde.runtime import files
from cdsde.version import __version__
from cdsde.weights.diffusers.networks import VARIANTS, WEIGHTS

SCHEME = "hf:"
# Of revisions, only the hub's own refs (pull requests, converted copies) have slashes here.
REVISION = r"refs/(?:pr|convert|heads|tags)/[^/]+|[^/]+"
NAME = re.compile(rf"hf:(?P<repo>[\w.-]+/[\w.-]+?)(@(?P<revision>{REVISION}))?(/(?P<path>.+?))?/?")
# The folders of a model, and whether each holds a network.
MODEL = {"unet": True, "vae": True, "text_encoder": True, "tokenizer": False, "scheduler": False}
PARTS = ("score", "model", "network")


class Name(NamedTuple):
    """What `hf:OWNER/REPO[@REVISION][/PATH]` names."""

    text: str
    repo: str
    revision: str | None
    path: str


def local(name: str | Path, part: str = "score") -> Path:
    """The path of weights on this machine; those of a hub are fetched if they are not there.

    Args:
      name: `hf:OWNER/REPO[@REVISION][/PATH]`, where PATH is a file or a folder of the repository;
        any other name is a path already.
      part: what is needed of a folder. "score": a pixel model, with its network at the top or in
        `unet/`; "model": all parts of a latent diffusion model; "network": one network at the top.
        Of a network the safetensors are fetched, and a score network's `.bin` if there are none.
        Where PATH is a file, that file and what describes it beside it, `.json` or `.config.json`.

    Returns:
      The path of the file or of the folder, in the hub's cache; another name as it is.

    Raises:
      ValueError: the files cannot be had; one sentence, with a remedy.
    """
    if part not in PARTS:
        raise ValueError(f"part is '{part}'; choose one of {', '.join(PARTS)}")
    if not str(name).startswith(SCHEME):
        return Path(name)
    asked, hub = _parse(str(name)), _package(name)
    import httpx2
    from huggingface_hub import errors

    failures = (httpx2.HTTPError, OSError, errors.RevisionResolutionError)
    api = hub.HfApi(library_name="cdsde", library_version=__version__)
    try:
        revision = api.resolve_revision(asked.repo, revision=asked.revision)
        sizes = _listing(hub, api, asked.repo, revision)
    except failures as error:
        raise ValueError(_sentence(error, asked)) from error
    wanted = choose(sizes, asked, part)
    try:
        folder = hub.snapshot_download(
            asked.repo,
            revision=revision,
            allow_patterns=[glob.escape(file) for file in wanted],
            library_name="cdsde",
            library_version=__version__,
        )
    except failures as error:
        raise ValueError(_sentence(error, asked, sum(sizes[file] for file in wanted))) from error
    _check_sizes(Path(folder), {file: sizes[file] for file in wanted}, asked)
    return Path(folder) / asked.path


def _parse(name: str) -> Name:
    found = NAME.fullmatch(name)
    if not found:
        raise ValueError(
            f"'{name}' names no repository; write hf:OWNER/REPO, hf:OWNER/REPO@REVISION or "
            "hf:OWNER/REPO/PATH"
        )
    return Name(name, found["repo"], found["revision"], found["path"] or "")


def _package(name: str | Path) -> Any:
    """huggingface_hub, told to do nothing but to fetch.

    Otherwise it asks the hub which programs of the day to look for here and reports what it finds,
    and Xet takes files from further hosts.
    """
    try:
        import huggingface_hub
        from huggingface_hub import constants, get_cached_repo_tree  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{name} lies on a model hub, which needs huggingface_hub 2.4 or newer: pip install "
            "'cdsde[hub]'"
        ) from error
    constants.HF_HUB_DISABLE_TELEMETRY = True
    constants.HF_HUB_DISABLE_XET = True
    return huggingface_hub


def _listing(hub, api, repo: str, revision) -> dict[str, int]:
    """Size in bytes of each file of a repository, by its path."""
    import httpx2
    from huggingface_hub import errors

    try:
        found = hub.get_cached_repo_tree(repo, revision=revision)
    except errors.CachedRepoTreeNotFoundError:
        try:
            found = list(api.list_repo_tree(repo, recursive=True, revision=revision.resolved))
        except (httpx2.HTTPError, errors.OfflineModeIsEnabled) as error:
            if isinstance(error, errors.HfHubHTTPError) and error.response.status_code < 500:
                raise  # the hub has answered
            # Another program may have filled the cache, without a listing.
            try:
                kept = Path(hub.snapshot_download(repo, revision=revision, local_files_only=True))
            except errors.LocalEntryNotFoundError:
                raise error from None
            paths = [path for path in kept.rglob("*") if path.is_file()]
            return {path.relative_to(kept).as_posix(): path.stat().st_size for path in paths}
    return {file.path: file.size for file in found if isinstance(file, hub.hf_api.RepoFile)}


def advice(name: str) -> str:
    """What to do about a path that does not exist."""
    bare = re.sub("^hf:", "", name, flags=re.IGNORECASE)
    repository = bare.count("/") == 1 and not Path(name).parent.exists()
    if (bare != name or repository) and NAME.fullmatch(SCHEME + bare):
        return f"check the path, or write {SCHEME}{bare} for a model hub"
    return "check the path"


def choose(listed: Iterable[str], asked: Name, part: str) -> list[str]:
    """The files that are needed, of those of a repository; `local` says which.

    Raises:
      ValueError: the repository has not what was asked for.
    """
    listed = set(listed)
    if asked.path in listed:
        file = PurePosixPath(asked.path)
        beside = {str(file.with_suffix(suffix)) for suffix in (".json", ".config.json")}
        return sorted({asked.path, *beside} & listed)
    prefix = f"{asked.path}/" if asked.path else ""
    inside = {file.removeprefix(prefix) for file in listed if file.startswith(prefix)}
    if not inside:
        raise ValueError(
            f"{asked.text}: {asked.repo} has no file or folder {asked.path}; it has "
            f"{_some({file.split('/')[0] for file in listed})}"
        )
    if part == "score":
        within = any(file.startswith("unet/") for file in inside)
        folders = {"": not within, "unet": within, "scheduler": False}
    else:
        folders = MODEL if part == "model" else {"": True}
    chosen = []
    for folder, network in folders.items():
        start = f"{folder}/" if folder else ""
        here = {
            file.removeprefix(start)
            for file in inside
            if file.startswith(start) and "/" not in file.removeprefix(start)
        }
        if not here and part == "model":
            raise ValueError(
                f"{asked.text} has no folder {folder}, and a latent diffusion model has "
                f"{', '.join(MODEL)}; name another repository, or the folder of the model in it"
            )
        found = [file for file in here if file.endswith((".json", ".txt"))]
        found = [file for file in found if ".index." not in file]
        found += _tensors(here, asked, folder, part) if network else []
        chosen += [f"{prefix}{start}{file}" for file in found]
    return sorted(chosen)


def _tensors(here: set[str], asked: Name, folder: str, part: str) -> list[str]:
    """The files of a network's parameters: those that `read_weights` takes."""
    for suffix in ("safetensors", "bin"):
        for name in (f"{stem}{variant}" for variant in VARIANTS for stem in WEIGHTS):
            shard = re.compile(rf"{re.escape(name)}-\d+-of-\d+\.{suffix}")
            index = f"{name}.{suffix}.index.json"
            found = [index, *filter(shard.fullmatch, here)] if index in here else []
            if not found and f"{name}.{suffix}" in here:
                found = [f"{name}.{suffix}"]
            if found and suffix == "bin" and part != "score":
                place = f"{folder}/" if folder else ""
                raise ValueError(
                    f"{asked.text} has {place}{found[-1]} and no safetensors beside it, and only "
                    "these are read there; name a revision that has them, or convert the file"
                )
            if found:
                return found
        other = [
            file for file in sorted(here) if re.fullmatch(rf"{WEIGHTS[0]}\..*\.{suffix}", file)
        ]
        if part == "score" and len(other) == 1:  # of another variant, as read from a folder
            return other
    place = f"{folder}/" if folder else "its folder"
    raise ValueError(
        f"{asked.text} has no {WEIGHTS[0]}.safetensors or {WEIGHTS[1]}.safetensors in {place}, but "
        f"{_some(here)}; name one of its files or folders, hf:OWNER/REPO/PATH"
    )


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:8]) + (" and more" if len(names) > 8 else "") or "nothing"


def _check_sizes(folder: Path, sizes: Mapping[str, int], asked: Name) -> None:
    """Raises a ValueError where a file in the cache is not as long as the hub's listing says."""
    for file, size in sizes.items():
        there = (folder / file).stat().st_size
        if there != size:
            raise ValueError(
                f"{asked.text}: {folder / file} has {there:,} of its {size:,} bytes; delete it, "
                "and the same command fetches it again"
            )


def _sentence(error: BaseException, asked: Name, size: int | None = None) -> str:
    """What went wrong, and what to do; `size` is the number of bytes that were to be fetched."""
    import httpx2
    from huggingface_hub import constants, errors

    chain = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)

    def one(*kinds: type[BaseException]) -> Any:
        return next((e for e in chain if isinstance(e, kinds)), None)

    hub, repo, cache = constants.ENDPOINT, asked.repo, constants.HF_HUB_CACHE
    if one(errors.GatedRepoError):
        return (
            f"{asked.text} asks for a consent to its terms: give it at {hub}/{repo}, then run `hf "
            "auth login` or set HF_TOKEN"
        )
    if one(errors.RepositoryNotFoundError):
        return (
            f"{asked.text}: {hub} has no repository {repo}, or a private one; check the name, or "
            "run `hf auth login` or set HF_TOKEN"
        )
    if one(errors.RevisionNotFoundError):
        return (
            f"{asked.text}: {repo} has no revision {asked.revision}; name a branch, a tag or a "
            "whole commit hash"
        )
    if one(errors.OfflineModeIsEnabled):
        return (
            f"{asked.text} is not in the cache {cache}, or not all of it, and HF_HUB_OFFLINE "
            "forbids to fetch it; unset that variable, or name a folder on this machine"
        )
    if (answer := one(errors.HfHubHTTPError)) is not None:
        code = answer.response.status_code
        remedy = "try again later"
        if code in (401, 403):
            remedy = "the token (HF_TOKEN, or `hf auth login`) does not give access to it"
        if code == 404:
            remedy = "name another revision or file"
        return f"{asked.text}: {hub} answered {code} to {answer.response.url.path}; {remedy}"
    if one(errors.FileMetadataError):
        return f"{asked.text}: {hub} does not answer as a hub does; check HF_ENDPOINT and the proxy"
    if one(httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError):
        return (
            f"{asked.text} is not in the cache {cache}, and {hub} cannot be reached; check the "
            "network, or fetch it elsewhere and name its folder"
        )
    system = next((e for e in chain if isinstance(e, OSError) and e.errno is not None), None)
    if system is not None and system.errno in files.FULL:
        return f"{asked.text}: {files.disk_full(cache, size)}"
    if system is not None and not isinstance(system, ConnectionError):
        reason = (system.strerror or "no access").lower()
        return (
            f"{asked.text}: {system.filename or cache} cannot be written: {reason}; set HF_HOME to "
            "another folder"
        )
    return (
        f"{asked.text}: the connection to {hub} was cut off, and no part of the broken file is "
        "kept; run the same command again"
    )
