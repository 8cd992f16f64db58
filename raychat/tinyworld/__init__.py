"""A small invented world in simple English, made from a seed in seconds: enough data for every stage of a tiny run.

Everything has the layout of a real data set: nothing downstream can tell the difference.

    pretrain/shard_00000.parquet ...       stories, facts and lessons; the last shard is validation
    chat/{train,test}.jsonl                {"messages": [...]}, as SmolTalk
    gsm8k/{train,test}.jsonl               word problems with calculator calls
    ai2_arc/{ARC-Easy,ARC-Challenge}/{train,test}.jsonl
    mmlu/{auxiliary_train,test}.jsonl
    humaneval/HumanEval.jsonl.gz
    spelling/words.txt
    eval_bundle/{core.yaml,eval_meta_data.csv,eval_data/**.jsonl}

Test questions ask what no training question asks, but the pretraining text states the facts behind them.
"""

from raychat.tinyworld.write import complete, write

__all__ = ["complete", "write"]
