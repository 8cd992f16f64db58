"""Train a series of runs under one name: a ladder of depths, or any list of settings, and the law that they follow.

    python jobs/miniseries.py                                       d2, d3 and d4 at toy size
    python jobs/miniseries.py --name slow --settings sequence_len=256 batch_tokens=1024 ratio=0.08 lr_scale=0.2
    python jobs/compare.py mini slow                                what the other learning rate is worth in compute
    python jobs/miniseries.py --name iso --isoflop 3e11 1e12        the best size for each budget of FLOPs
    python jobs/miniseries.py --name d10-18 --depths 10 12 14 16 18 --data climbmix --settings ratio=10.5 \
        --vocab-size 32768 --max-items 500                          on a cluster with GPUs, a rung on each

Every rung is an ordinary run, `<name>-d4`, for jobs/report.py, jobs/sample.py and all others. Killed at any moment, the
same command continues: rungs that are finished are not repeated. The report goes to runs/<name>/series.
"""

import itertools
import re
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs import base_eval, base_train, tok_train
from raychat import paths
from raychat.actors import Actors, InProcess
from raychat.cluster import Cluster
from raychat.lease import wait_until_free
from raychat.settings import MAX_SEED, above, at_least, at_most

if TYPE_CHECKING:  # a job shows its help without torch
    from raychat.tokenizer import Tokenizer

TOY = ("sequence_len=256", "batch_tokens=1024", "ratio=0.08", "lr_scale=0.8", "save_every=50", "eval_tokens=60000")

ORPHAN_S = 300.0  # that a rung's actor may outlive a driver that was killed


@dataclass(frozen=True)
class Args:
    name: str = "mini"  # of the series; its rungs are the runs <name>-d2, <name>-d3, ...
    depths: tuple[int, ...] = (2, 3, 4)  # of the rungs
    rungs: tuple[str, ...] = ()  # in place of depths, settings of jobs/base_train.py: "depth=3 lr_scale=0.4"
    isoflop: tuple[float, ...] = ()  # budgets of FLOPs; every rung is trained for as many steps as each allows
    seeds: tuple[int, ...] = (0,)  # every rung is trained with each: their spread is the noise
    settings: tuple[str, ...] = TOY  # of jobs/base_train.py, for all rungs
    data: tuple[str, ...] = ("tinyworld",)  # pretraining corpus, as for base_train
    num_shards: int | None = None  # shards to use; None = as many as each rung needs, or all there are
    vocab_size: int = 1024  # of the tokenizer that all rungs share
    bundle: str = "tinyworld"  # CORE's tasks, as for base_eval
    max_items: int | None = 60  # items of each CORE task; None = all
    parallel: int | None = None  # rungs at once; None = as many as there are GPUs or cores for
    cluster: Cluster = field(default_factory=Cluster)  # of each rung; 0 workers = one after the other, without Ray

    def __post_init__(self) -> None:
        at_least(self, depths=1, seeds=0, max_items=1, parallel=1, num_shards=1)
        at_most(self, seeds=MAX_SEED)
        if self.isoflop:
            above(self, isoflop=0)


class Job(NamedTuple):
    """A rung's settings."""

    label: str
    budget: float | None
    flops: float
    num_shards: int | None  # that the rung reads; None = all
    train: base_train.Args
    evaluate: base_eval.Args


def run(args: Args) -> dict[str, Any]:
    """Train and evaluate what is left of the series; write its report and return the law's figures.

    Raises:
        ValueError: Two rungs are the same, a setting has no value, or a run of such a name has another recipe.
    """
    from raychat import report
    from raychat.lab import findings, series
    from raychat.report.markdown import table_text
    from raychat.tokenizer import Tokenizer

    storage, given = args.cluster.storage(), settings_of(args)
    tok_train.run(
        tok_train.Args(args.name, args.data, args.num_shards, vocab_size=args.vocab_size, cluster=args.cluster)
    )
    tokenizer = Tokenizer.load(args.cluster.run_folder(args.name, "tokenizer"))
    jobs = jobs_of(args, given, tokenizer.vocab_size)
    rungs = [series.Rung(job.train.run, job.label, job.train.seed, job.budget) for job in jobs]
    settings = {key: value for key, value in asdict(args).items() if key not in ("name", "cluster", "parallel")}
    series.save(storage, args.name, settings, rungs)
    for job in jobs:
        tokenizer.save_once(args.cluster.run_folder(job.train.run, "tokenizer"))
    prepare_tokens(args, jobs, tokenizer)
    with closing(open_actors(args, len(jobs))) as actors:
        for job, _ in zip(jobs, actors.map(run_rung, jobs), strict=True):
            print(f"miniseries: {job.train.run} is done", flush=True)
    found = series.load(storage, args.name)
    folder = series.folder(storage, args.name)
    report.write_files(folder, "report", *findings.heading(found), findings.sections(found))
    print(f"{table_text(findings.rungs_of(found))}\n\nreport: {paths.join(folder, 'report.html')}")
    law = findings.law_of(found)
    return {"law": law and law._asdict(), "rungs": [measured._asdict() for measured in found.measured]}


def settings_of(args: Args) -> dict[str, base_train.Args]:
    """Return what sets the rungs apart, in words, each with its settings. Exits or raises ValueError at a wrong one."""
    common = base_train.Args(data=args.data, num_shards=args.num_shards, cluster=args.cluster)
    rungs = args.rungs or tuple(f"depth={depth}" for depth in args.depths)
    labels = [re.sub(r"\bdepth=(\d+)", r"d\1", words) for words in rungs]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise ValueError(f"two rungs are the same: {', '.join(sorted(twice))}; they must differ in a setting")
    return {
        label: with_words(common, [*args.settings, *words.split()]) for label, words in zip(labels, rungs, strict=True)
    }


def jobs_of(args: Args, settings: dict[str, base_train.Args], vocab_size: int) -> list[Job]:
    """Return the rungs' jobs, the largest first: with several at once, the longest must not begin last."""
    from raychat.lab.series import flops_per_token

    made = []
    for label, given in settings.items():
        recipe = base_train.stage_of(given, vocab_size, None).recipe
        flops_per_step = recipe.rows_per_step * recipe.sequence_len * flops_per_token(recipe.model)
        for budget, seed in itertools.product(args.isoflop or (None,), args.seeds):
            flops = [f"{budget:g}".replace("e+", "e")] if budget else []
            parts = [args.name, label, *flops, *([f"s{seed}"] if seed else [])]
            name = re.sub(r"[^\w.]+", "-", "-".join(parts))
            steps = max(1, round(budget / flops_per_step)) if budget else given.steps
            train = replace(given, run=name, seed=seed, steps=steps)
            steps = steps or recipe.steps or 1
            evaluate = base_eval.Args(name, args.bundle, max_items=args.max_items, eval_tokens=train.eval_tokens)
            num_shards = base_train.num_shards_of(train, replace(recipe, steps=steps))
            made.append(Job(label, budget, steps * flops_per_step, num_shards, train, evaluate))
    return sorted(made, key=lambda job: -job.flops)


def with_words(train: base_train.Args, words: list[str]) -> base_train.Args:
    """Replace settings by those in words such as `lr_scale=0.4`, with the messages of base_train's command line."""
    import tyro

    flags = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} is no setting; expected name=value, as in lr_scale=0.4")
        flags += [f"--{name.replace('_', '-')}", value]
    return tyro.cli(base_train.Args, args=flags, default=train, config=(tyro.conf.FlagConversionOff,))


def prepare_tokens(args: Args, jobs: list[Job], tokenizer: "Tokenizer") -> None:
    """Make the token shards before the rungs read them, once for all that share them."""
    from raychat.cluster.prepare import prepare
    from raychat.data.pack import pretraining

    storage = args.cluster.storage()
    needed = dict.fromkeys((job.train.sequence_len, job.num_shards) for job in jobs)
    for sequence_len, num_shards in needed:
        for packing in pretraining(args.data, tokenizer, sequence_len, storage, num_shards):
            prepare(packing, args.cluster)


def open_actors(args: Args, num_rungs: int) -> Actors:
    """Return actors that each train a rung at a time, as many as there is room for; with 0 workers this process."""
    from raychat.cluster import num_gpus
    from raychat.cluster.map import actors_per_worker, num_cores

    cluster, workers = args.cluster, args.cluster.max_workers
    if workers == 0:
        return InProcess(type(None))
    cluster.connect()
    room = num_gpus() // (workers * cluster.gpus()) if cluster.gpus() else num_cores(cluster) // workers
    at_once = max(1, min(num_rungs, args.parallel or room))
    holder = replace(cluster, workers=at_once, gpus_per_worker=None if workers == 1 else 0)
    return actors_per_worker(holder, type(None), num_rungs, name="rungs")


def run_rung(_: None, job: Job) -> None:
    """Train and evaluate a rung, or what is left of it. A rung of one worker is trained by the actor itself."""
    cluster = job.train.cluster
    wait_until_free(cluster.run_folder(job.train.run, "base"), ORPHAN_S)
    cluster = replace(cluster, workers=0) if cluster.max_workers == 1 else cluster
    base_train.run(replace(job.train, cluster=cluster))
    base_eval.run(replace(job.evaluate, cluster=cluster))


if __name__ == "__main__":
    import tyro

    run(tyro.cli(Args, description=__doc__))
