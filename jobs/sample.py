"""Let a model continue a text, in this process, without Ray.

python jobs/sample.py --run tiny --start "Once upon a time"

python jobs/sample.py --run gpt2-xl --start "What is the answer?"  (OpenAI's, imported from the hub the first time)

python jobs/sample.py --run d12 --stage base --step 2000 --start FILE:prompt.txt --num-samples 3 --seed 1
"""

import sys
from dataclasses import dataclass, field
from typing import Literal

from raychat.cluster import Cluster
from raychat.settings import MAX_SEED, at_least, at_most


@dataclass(frozen=True)
class Args:
    run: str = "tiny"  # name of the run, or gpt2, gpt2-medium, gpt2-large, gpt2-xl
    stage: Literal["base", "mid", "sft", "rl"] = "base"  # which model of the run
    step: int | None = None  # which of its checkpoints; None = the newest
    start: str = ""  # the text to continue; FILE:<path> = what a file holds
    num_samples: int = 5  # continuations
    max_new_tokens: int = 200  # length of each, at most; it ends sooner where the model ends the text
    temperature: float = 0.8  # of sampling: higher is more varied, 0 = always the most likely token
    top_k: int | None = 200  # sample only among the k most likely tokens; None = all
    seed: int | None = None  # of sampling: the same seed gives the same samples; None = new ones every time
    cluster: Cluster = field(default_factory=Cluster)  # only its storage path matters here

    def __post_init__(self) -> None:
        at_least(self, step=1, num_samples=1, max_new_tokens=1, temperature=0, top_k=1, seed=0)
        at_most(self, seed=MAX_SEED)


def run(args: Args) -> list[str]:
    """Print the continuations; return them, each with the text that it continues.

    Raises:
        ValueError: There is no such checkpoint, a setting is out of its range, or the text fills the context.
    """
    from raychat import paths, runs
    from raychat.engine.sampling import SamplingParams
    from raychat.evals.evaluation import LoadedModel
    from raychat.evals.samples import sampled
    from raychat.interchange.importing import import_run
    from raychat.model.gpt2 import SIZES

    is_file = args.start.startswith("FILE:")
    start = paths.read_text(args.start.removeprefix("FILE:")) if is_file else args.start
    if args.run in SIZES and not paths.exists(args.cluster.run_folder(args.run)):
        import_run(args.run, args.cluster.storage(), args.run)
    found = runs.find_checkpoint(args.cluster.storage(), args.run, args.stage, args.step)
    params = SamplingParams(args.temperature, args.top_k, max_new_tokens=args.max_new_tokens, seed=args.seed)
    texts = sampled(LoadedModel.load(found.path), start, args.num_samples, params)
    for text in texts:
        print(text, end="\n---------------\n", flush=True)
    return texts


if __name__ == "__main__":
    import tyro

    try:
        run(tyro.cli(Args, description=__doc__))
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"sample: {error}")
