"""Model folders on the Hugging Face hub: which files are needed, how big they are, and the library's own download.

Resuming, progress bars, the cache and ``HF_HUB_OFFLINE`` are ``huggingface_hub``'s. What is added: only the needed
files are fetched (one set of weights of several), and the size is reported before the download starts.
"""

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path

from irg.model.weights.config_files import how_to_complete
from irg.model.weights.hub_names import HubName
from irg.model.weights.manifest import format_size, read_index
from irg.model.weights.weight_sets import AUTOENCODER, INDEX, SUFFIX, choose_set, weight_sets

SMALL = ("*.json", "merges.txt")  # configurations, tokenizer, indexes, irg.json
MAX_SMALL_BYTES = 1 << 26


def snapshot(
    name: HubName,
    weights: str | None = None,
    say: Callable[[str], None] = lambda _: None,
    partial: bool = False,
) -> Path:
    """The local folder of a hub model; what is not in the cache yet is downloaded.

    Args:
        weights: the name of the set of weights to take (default: :func:`irg.model.weights.weight_sets.choose_set`).
        partial: a repository without an autoencoder will do.
        say: gets one line with what is fetched, from where, how big, before the download starts.

    Raises:
        ValueError: there is no such repository or revision, it may not be read, it is no model of ours, or the hub
            can't be reached (or may not be: ``HF_HUB_OFFLINE=1``) and the cache does not have it whole.
    """
    from huggingface_hub import constants
    from huggingface_hub import errors as hub_errors

    repo = name.repo
    if constants.HF_HUB_OFFLINE:
        return cached(name, f"HF_HUB_OFFLINE is set, and the cache does not have {name}")
    try:
        return _download(name, weights, say, partial)
    except hub_errors.HFValidationError as error:
        raise ValueError(f"{str(name)!r} is no hub model: {_first_line(error)}") from None
    except hub_errors.GatedRepoError as error:
        raise ValueError(
            f"hub model {repo!r} is gated: accept its terms on {constants.ENDPOINT}/{repo}, then hf auth login"
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"hub model {repo!r} is not on {constants.ENDPOINT}, or is private (then hf auth login)"
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise ValueError(f"hub model {repo!r} has no revision {name.revision!r}") from error
    except hub_errors.HfHubHTTPError as error:
        if _status(error) >= 500:  # the hub is down
            return cached(name, f"hub model {repo!r} can't be downloaded: {_first_line(error)}")
        raise ValueError(f"hub model {repo!r}: {_first_line(error)}") from error
    except ValueError:
        raise
    except Exception as error:  # no answer; which of many errors that is depends on the library's HTTP client
        why = f"hub model {repo!r} can't be downloaded, and no folder of that name is here: {_first_line(error)}"
        return cached(name, why)


def _download(name: HubName, weights: str | None, say: Callable[[str], None], partial: bool) -> Path:
    import huggingface_hub
    from huggingface_hub import constants

    repo, inside = name.repo, f"{name.folder}/" if name.folder else ""
    info = huggingface_hub.HfApi().model_info(repo, revision=name.revision, files_metadata=True)
    every = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    sizes = {file.removeprefix(inside): size for file, size in every.items() if file.startswith(inside)}

    def shards(index: str) -> list[str]:
        return _shards(Path(huggingface_hub.hf_hub_download(repo, inside + index, revision=info.sha)))

    files = needed(str(name), sizes, shards, weights, partial)
    missing = [file for file in files if not _is_cached(repo, inside + file, info.sha)]
    if missing:
        size = format_size(sum(sizes[file] for file in missing))
        files_shown = "1 file" if len(missing) == 1 else f"{len(missing)} files"
        say(
            f"Downloading {size} ({files_shown}) of {name} from {constants.ENDPOINT} into {constants.HF_HUB_CACHE}: "
            f"once; if interrupted, it goes on where it was"
        )
    patterns = [inside + file for file in files]
    # by the name of the revision, not by its hash: only then does the cache know offline which snapshot it means
    path = huggingface_hub.snapshot_download(repo, revision=name.revision, allow_patterns=patterns)
    return Path(path) / name.folder


def needed(
    repo: str,
    sizes: Mapping[str, int],
    shards: Callable[[str], Iterable[str]],
    weights: str | None = None,
    partial: bool = False,
) -> list[str]:
    """Files of a repository that loading needs: all small ones, the autoencoder, and one set of weights.

    Args:
        sizes: the repository's files and their bytes.
        shards: the files that a shard index names; only asked of an index whose weights are taken.
        partial: the autoencoder may be missing.

    Raises:
        ValueError: the repository has no such weights.
    """
    files = [name for name in sizes if _is_small(name, sizes)]
    sets = weight_sets(sizes)
    if AUTOENCODER not in sets and not partial:
        raise ValueError(f"hub model {repo!r} has no {AUTOENCODER}{SUFFIX}; {how_to_complete(repo)}")
    wanted = [choose_set(sizes, weights, f"hub model {repo!r}")]
    for chosen in (*wanted, *([sets[AUTOENCODER]] if AUTOENCODER in sets else [])):
        files += [chosen.file, *(shards(chosen.file) if chosen.file.endswith(INDEX) else chosen.shards)]
    lost = [name for name in files if name not in sizes]
    if lost:
        raise ValueError(f"hub model {repo!r}: its index names {lost[0]!r}, which is not in the repository")
    return list(dict.fromkeys(files))


def _is_small(name: str, sizes: Mapping[str, int]) -> bool:
    return "/" not in name and any(fnmatch(name, pattern) for pattern in SMALL) and sizes[name] <= MAX_SMALL_BYTES


def _shards(index: Path) -> list[str]:
    return list(dict.fromkeys(read_index(index).values()))


def _is_cached(repo: str, name: str, revision: str | None) -> bool:
    import huggingface_hub

    return isinstance(huggingface_hub.try_to_load_from_cache(repo, name, revision=revision), str)


def cached(name: HubName, otherwise: str = "it is not in the cache") -> Path:
    """The snapshot in the cache. It may lack what loading does not need; if it lacks more, loading names the file.

    Raises:
        ValueError: there is none; the message begins with ``otherwise``.
    """
    import huggingface_hub

    try:
        path = Path(huggingface_hub.snapshot_download(name.repo, revision=name.revision, local_files_only=True))
    except Exception as error:
        partial = getattr(error, "snapshot_path", None)
        if partial is None or not Path(partial).is_dir():
            revision = f" --revision {name.revision}" if name.revision else ""
            raise ValueError(f"{otherwise}; once online: hf download {name.repo}{revision}") from error
        path = Path(partial)
    return path / name.folder


def _status(error: BaseException) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", None) or 0)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
