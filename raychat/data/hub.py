"""Pretraining data that is downloaded: shards of the Hugging Face hub when they are read, a small text when named."""

import os
import re
import shutil
import time
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import NamedTuple

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils.tqdm import disable_progress_bars

from raychat import paths


class HubCorpus(NamedTuple):
    """A hub data set of numbered files; the last one is for validation."""

    repo: str
    num_shards: int
    shard_bytes: int  # of text in each, roughly
    file: str = "shard_{:05d}.parquet"  # its name on the hub


HUB = {
    "climbmix": HubCorpus("karpathy/climbmix-400b-shuffle", 6543, 250_000_000),
    "fineweb-edu": HubCorpus("karpathy/fineweb-edu-100b-shuffle", 1823, 250_000_000),
    "openwebtext": HubCorpus("Skylion007/openwebtext", 80, 500_000_000, "plain_text/train-{:05d}-of-00080.parquet"),
}
TEXTS = {
    "tinyshakespeare": "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
}


def hub_shards(name: str, storage: str) -> list[str]:
    """Return the paths that the shards of a hub corpus have, or will have, in the storage. Needs no network."""
    return [paths.join(storage, "data", name, f"shard_{i:05d}.parquet") for i in range(HUB[name].num_shards)]


def source(path: str) -> HubCorpus | None:
    """Return the hub corpus of a path of `hub_shards`; None for any other path."""
    found = re.search(r"(?:^|/)data/([^/]+)/shard_(\d{5})\.parquet$", path)
    corpus = HUB.get(found[1]) if found else None
    return corpus if found and corpus and int(found[2]) < corpus.num_shards else None


def text_path(name: str, storage: str) -> str:
    """Return the path that a text of `TEXTS` has, or will have, in the storage."""
    return paths.join(storage, "data", name, "input.txt")


def fetch_text(name: str, storage: str) -> str:
    """Return the path of a text of `TEXTS` in the storage; download it first if it is missing.

    Raises:
        ConnectionError: it could not be downloaded.
    """
    path = text_path(name, storage)
    if not paths.exists(path):
        try:
            with urllib.request.urlopen(TEXTS[name], timeout=60) as answer:
                paths.write_bytes(path, answer.read())
        except (OSError, HTTPException) as error:
            raise ConnectionError(
                f"{name} could not be downloaded from {TEXTS[name]} ({error}); put the file at {path}, or name another "
                "text file"
            ) from error
    return path


def fetch(path: str, *, attempts: int = 8, backoff_s: float = 1.0, log: Callable[[str], None] = print) -> str:
    """Return `path`; if it is a hub shard that is missing, download it first.

    The file appears under its name only when it is whole. huggingface_hub resumes interrupted transfers and checks the
    size; an attempt that fails nevertheless is repeated after a pause of `backoff_s`, which doubles each time up to a
    minute. HF_ENDPOINT and HF_TOKEN are respected.

    Raises:
        FileNotFoundError: the hub does not have the file.
        ConnectionError: every attempt failed; holds the last cause.
    """
    corpus, attempt = source(path), 0
    file = corpus.file.format(int(paths.name(path)[6:11])) if corpus else ""
    while corpus and not paths.exists(path):  # another process may be faster
        attempt += 1
        try:
            _download(corpus.repo, file, path)
        except (RemoteEntryNotFoundError, RepositoryNotFoundError) as error:
            raise FileNotFoundError(f"the hub has no {file} in the data set {corpus.repo}: {error}") from error
        except Exception as error:
            if attempt == attempts:
                raise ConnectionError(
                    f"{file} of {corpus.repo} could not be downloaded in {attempts} attempts: {error}"
                ) from error
            pause_s = min(60.0, backoff_s * 2 ** (attempt - 1))
            log(f"{file} of {corpus.repo}: attempt {attempt} of {attempts} failed ({error}); next in {pause_s:g} s")
            time.sleep(pause_s)
    return path


def _download(repo: str, file: str, path: str) -> None:
    """Download one file into a folder where a killed download resumes, and move it to `path`."""
    disable_progress_bars()
    root = paths.parent(path) if paths.is_local(path) else paths.join(paths.cache(), repo)
    folder = paths.join(root, f".tmp-{paths.name(path)}")
    endpoint = os.environ.get("HF_ENDPOINT") or None
    got = hf_hub_download(repo, file, repo_type="dataset", local_dir=folder, endpoint=endpoint)
    if paths.is_local(path):
        os.replace(got, path)
    else:
        with open(got, "rb") as f:
            paths.write_bytes(path, f.read())
    shutil.rmtree(folder, ignore_errors=True)
