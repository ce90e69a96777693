"""Two gloo processes share the questions and give what one process gives."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys

import pandas as pd
import torch.distributed as dist

from unlearnkit.evaluation.runner import evaluate

OPTIONS = {"suite": "forget", "max_new_tokens": 4, "batch_tokens": 200, "progress": False}

# The second process believes that an answer is on its disk which the first has not found.
SECOND = """
import datetime, json, sys
import torch, torch.distributed as dist
from unlearnkit.evaluation.runner import evaluate
from unlearnkit.evaluation.store import ResultStore
folder = sys.argv[1]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=1, world_size=2,
                        timeout=datetime.timedelta(seconds=300))
known, first = ResultStore.__contains__, []
def contains(self, name):
    first[:] = first or [name]
    return name == first[0] or known(self, name)
ResultStore.__contains__ = contains
result = evaluate(f"{folder}/model", output=f"{folder}/second", **json.load(open(f"{folder}/options.json")))
result.run.records.to_pickle(f"{folder}/second.pkl")
dist.destroy_process_group()
"""


def test_two_processes_give_what_one_gives(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in fictional_rows("forget10_perturbed")[:3]))
    options = {**OPTIONS, "data": {"forget": str(path)}}
    one = evaluate(tiny_model(), tiny_tokenizer, cache=False, **options)
    (tmp_path / "options.json").write_text(json.dumps(options))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "UNLEARNKIT_CACHE": str(tmp_path / "cache")}
    second = subprocess.Popen([sys.executable, "-c", SECOND, str(tmp_path)], env=environment)
    meet, patience = f"file://{tmp_path}/meet", datetime.timedelta(seconds=300)
    dist.init_process_group("gloo", init_method=meet, rank=0, world_size=2, timeout=patience)
    try:
        first = evaluate(tiny_model(), tiny_tokenizer, output=tmp_path / "first", **options)
    finally:
        dist.destroy_process_group()
    assert second.wait(timeout=300) == 0
    columns = ["probe", "example_id", "field", "index", "num_tokens", "text", "hits", "ends_with_eos"]
    for records in (first.run.records, pd.read_pickle(tmp_path / "second.pkl")):
        pd.testing.assert_frame_equal(records[columns], one.run.records[columns])
        for ours, theirs in zip(records["logps"], one.run.records["logps"], strict=True):
            assert max((abs(a - b) for a, b in zip(ours, theirs, strict=True)), default=0) < 1e-5
    assert first.summary["cost"]["scored_pairs"] == one.summary["cost"]["scored_pairs"] == 21
    assert (tmp_path / "first" / "summary.json").exists()
    assert not (tmp_path / "second").exists(), "the first process writes for all"
